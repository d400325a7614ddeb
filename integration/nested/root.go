package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/coffer-project/coffer/integration/nested/layout"
)

// firmware are the files beside QEMU that a Coffer VM takes.
var firmware = []string{"bios-256k.bin", "kvmvapic.bin", "linuxboot_dma.bin", "pvh.bin", "vgabios-stdvga.bin"}

// root is the folder that becomes the machine's root file system.
type root struct{ dir string }

// newRoot lays the file system out as Debian does, so that programs find their libraries where they did.
func newRoot(dir string) (*root, error) {
	r := &root{dir: dir}
	for _, name := range []string{
		"usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "dev", "proc", "sys", "run", "tmp", "etc", "root", "var/lib", "var/tmp",
	} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			return nil, err
		}
	}
	for _, name := range []string{"bin", "sbin", "lib", "lib64"} {
		if err := os.Symlink("usr/"+name, filepath.Join(dir, name)); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// fill puts everything into the file system but the first program.
func (r *root) fill(ctx context.Context, p *parts) error {
	t := p.tools
	for _, path := range []string{t.Containerd, t.CtrTool, t.Registry, t.Runc} {
		if err := r.install(path, filepath.Join(layout.Cache, "bin", filepath.Base(path))); err != nil {
			return err
		}
	}
	for _, path := range []string{t.Snapshotter, t.Shim, t.Broker, t.Ctl} {
		if err := r.install(path, filepath.Join(layout.Bin, filepath.Base(path))); err != nil {
			return err
		}
	}
	for _, path := range []string{t.Kernel, t.Initrd} {
		if err := r.install(path, filepath.Join(layout.Guest, filepath.Base(path))); err != nil {
			return err
		}
	}
	for _, name := range []string{"bridge", "host-local", "loopback", "portmap"} {
		if err := r.program(ctx, filepath.Join(t.CNIPlugins, name)); err != nil {
			return err
		}
	}
	for _, path := range append([]string{t.QEMU, t.Busybox}, p.programs...) {
		if err := r.program(ctx, path); err != nil {
			return err
		}
	}
	for _, name := range firmware {
		path, err := findFirmware(name)
		if err != nil {
			return err
		}
		if err := r.install(path, filepath.Join("/usr/share/qemu", name)); err != nil {
			return err
		}
	}
	for _, name := range []string{"sbin/modprobe", "bin/sh", "bin/mount", "bin/cat"} {
		if err := os.Symlink(t.Busybox, filepath.Join(r.dir, name)); err != nil {
			return err
		}
	}
	if err := r.slowClock(t.QEMU); err != nil {
		return err
	}
	samples := filepath.Join(p.repository, "contrib", "containerd")
	if err := os.CopyFS(filepath.Join(r.dir, samples), os.DirFS(samples)); err != nil {
		return err
	}
	return r.write("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\n")
}

// slowClock puts a script before QEMU that makes the clock of a pod's VM follow the instructions that the VM has executed, 32 ns each.
// By the machine's clock, a VM that is emulated twice would have time for little more than its timer's interrupts.
func (r *root) slowClock(qemu string) error {
	const script = `#!/bin/sh
case " $* " in *" -accel tcg "*) set -- "$@" -icount shift=5 ;; esac
exec %s "$@"
`
	path := filepath.Join(r.dir, "usr/local/bin", filepath.Base(qemu))
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, fmt.Appendf(nil, script, qemu), 0o755)
}

// findFirmware looks where QEMU's packages put such files.
func findFirmware(name string) (string, error) {
	for _, dir := range []string{"/usr/share/qemu", "/usr/share/seabios"} {
		path := filepath.Join(dir, name)
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("QEMU's file %s is missing: run make setup", name)
}

// program copies a program with the libraries it is linked to, all to the places that they have here.
func (r *root) program(ctx context.Context, path string) error {
	if err := r.install(path, path); err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, "ldd", path).CombinedOutput()
	if bytes.Contains(out, []byte("not a dynamic executable")) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find the libraries of %s: %w: %s", path, err, bytes.TrimSpace(out))
	}
	for _, library := range libraries(string(out)) {
		if err := r.install(library, library); err != nil {
			return err
		}
	}
	return nil
}

// libraries reads what ldd says: "name => path (address)", or "path (address)" for the loader itself.
func libraries(ldd string) []string {
	var paths []string
	for line := range strings.Lines(ldd) {
		for field := range strings.FieldsSeq(line) {
			if filepath.IsAbs(field) {
				paths = append(paths, field)
			}
		}
	}
	return paths
}

// install copies a program or data file of this machine; a file that is there already is the same.
func (r *root) install(from, to string) (retErr error) {
	target := filepath.Join(r.dir, to)
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return err
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(target, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { retErr = errors.Join(retErr, out.Close()) }()
	_, err = io.Copy(out, in)
	return err
}

func (r *root) write(path, text string) error {
	return os.WriteFile(filepath.Join(r.dir, path), []byte(text), 0o644)
}
