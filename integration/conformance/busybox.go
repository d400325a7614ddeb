package main

import (
	"archive/tar"
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/coffer-project/coffer/integration/registrytest"
)

// libraryDir is where Debian keeps the libraries of this machine's architecture.
const libraryDir = "/lib/x86_64-linux-gnu"

// busyboxLayer makes a root file system of Debian's dynamic busybox. The static one, which everything else here uses,
// runs applets inside its shell, so a mask over a program in /bin would hide nothing.
func busyboxLayer(ctx context.Context) (registrytest.Layer, error) {
	busybox, err := fetchBusybox(ctx)
	if err != nil {
		return registrytest.Layer{}, fmt.Errorf("get Debian's busybox: %w", err)
	}
	libraries, err := linkedLibraries(busybox)
	if err != nil {
		return registrytest.Layer{}, fmt.Errorf("find the libraries of busybox: %w", err)
	}
	applets, err := listApplets(ctx, busybox)
	if err != nil {
		return registrytest.Layer{}, fmt.Errorf("list busybox's applets: %w", err)
	}
	return registrytest.NewLayer(registrytest.Gzip, baseEntries(busybox, applets, libraries)...), nil
}

// fetchBusybox downloads the package, which cannot be installed beside the static one, and takes the program out of it.
func fetchBusybox(ctx context.Context) ([]byte, error) {
	dir, err := os.MkdirTemp("", "coffer-busybox")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	download := exec.CommandContext(ctx, "apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", "busybox")
	download.Dir = dir
	if out, err := download.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("download package busybox: %w: %s; run apt-get update", err, bytes.TrimSpace(out))
	}
	packages, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil || len(packages) != 1 {
		return nil, fmt.Errorf("download package busybox: got %d files", len(packages))
	}
	content, err := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", packages[0]).Output()
	if err != nil {
		return nil, fmt.Errorf("unpack %s: %w", packages[0], err)
	}
	for files := tar.NewReader(bytes.NewReader(content)); ; {
		header, err := files.Next()
		if err != nil {
			return nil, fmt.Errorf("find busybox in %s: %w", packages[0], err)
		}
		if path.Base(header.Name) == "busybox" && header.Typeflag == tar.TypeReg && strings.HasSuffix(path.Dir(header.Name), "bin") {
			return io.ReadAll(files)
		}
	}
}

// listApplets asks the program itself; its libraries are this machine's own.
func listApplets(ctx context.Context, busybox []byte) ([]string, error) {
	dir, err := os.MkdirTemp("", "coffer-busybox")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	program := filepath.Join(dir, "busybox")
	if err := os.WriteFile(program, busybox, 0o700); err != nil {
		return nil, err
	}
	out, err := exec.CommandContext(ctx, program, "--list").Output()
	return strings.Fields(string(out)), err
}

// linkedLibraries are the loader and every library that a program needs, by their paths, from this machine.
func linkedLibraries(program []byte) (map[string][]byte, error) {
	found := map[string][]byte{}
	var visit func(content []byte) error
	visit = func(content []byte) error {
		file, err := elf.NewFile(bytes.NewReader(content))
		if err != nil {
			return err
		}
		wanted, err := file.ImportedLibraries()
		if err != nil {
			return err
		}
		var paths []string
		for _, name := range wanted {
			// The loader lies elsewhere, and every library names it.
			if !strings.HasPrefix(name, "ld-linux") {
				paths = append(paths, filepath.Join(libraryDir, name))
			}
		}
		for _, p := range file.Progs {
			if p.Type == elf.PT_INTERP {
				raw, err := io.ReadAll(p.Open())
				if err != nil {
					return err
				}
				paths = append(paths, strings.TrimRight(string(raw), "\x00"))
			}
		}
		for _, path := range paths {
			if found[path] != nil {
				continue
			}
			library, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			found[path] = library
			if err := visit(library); err != nil {
				return fmt.Errorf("read %s: %w", path, err)
			}
		}
		return nil
	}
	if err := visit(program); err != nil {
		return nil, err
	}
	if len(found) == 0 {
		return nil, errors.New("it is linked statically")
	}
	return found, nil
}

func libraryEntries(libraries map[string][]byte) []registrytest.Entry {
	var entries []registrytest.Entry
	made := map[string]bool{"lib/": true}
	for _, name := range slices.Sorted(maps.Keys(libraries)) {
		name := strings.TrimPrefix(name, "/")
		if dir := path.Dir(name) + "/"; !made[dir] {
			made[dir] = true
			entries = append(entries, registrytest.Entry{Name: dir})
		}
		entries = append(entries, registrytest.Entry{Name: name, Body: string(libraries["/"+name]), Mode: 0o755})
	}
	return entries
}

// buildProgram compiles the suite's other programs from their source here.
func buildProgram(ctx context.Context) ([]byte, error) {
	dir, err := os.MkdirTemp("", "coffer-testprogram")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	out := filepath.Join(dir, "testprogram")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", out,
		"github.com/coffer-project/coffer/integration/conformance/testprogram")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build testprogram: %w: %s", err, text)
	}
	return os.ReadFile(out)
}
