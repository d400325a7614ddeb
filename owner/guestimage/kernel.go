package guestimage

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
)

// maxKernelFile bounds one file of a kernel package, in bytes: a boot image or a module.
const maxKernelFile = 256 << 20

// kernel is what the builder takes from a kernel package.
type kernel struct {
	version string
	vmlinuz []byte
	// modules are the module files as packed, compressed or not, by path below lib/modules/VERSION/.
	modules map[string][]byte
	// builtin names the modules that are part of the kernel, as moduleName writes them.
	builtin map[string]bool
	// options is the configuration that the kernel was built with; empty when the package does not have it.
	options []byte
}

// loadKernel reads a Debian kernel package, or a directory into which one was unpacked.
func loadKernel(source string) (*kernel, error) {
	k := &kernel{modules: map[string][]byte{}, builtin: map[string]bool{}}
	info, err := os.Stat(source)
	if err != nil {
		return nil, fmt.Errorf("open kernel: %w", err)
	}
	if info.IsDir() {
		err = k.addDir(source)
	} else {
		err = k.addDeb(source)
	}
	if err != nil {
		return nil, fmt.Errorf("load kernel %s: %w", source, err)
	}
	// A kernel may have everything built in, and then it has no module files; but it says so in modules.builtin.
	if k.vmlinuz == nil || len(k.modules)+len(k.builtin) == 0 {
		return nil, fmt.Errorf("load kernel %s: no boot/vmlinuz-* with lib/modules/* in it; give a linux-image package "+
			"(not the meta package): %w", source, errdefs.ErrNotFound)
	}
	if err := checkOptions(k.options); err != nil {
		return nil, fmt.Errorf("load kernel %s: %w", source, err)
	}
	return k, nil
}

func (k *kernel) addDeb(source string) error {
	f, err := os.Open(source)
	if err != nil {
		return err
	}
	defer f.Close()
	return readDeb(f, k.add)
}

func (k *kernel) addDir(source string) error {
	tree := os.DirFS(source)
	return fs.WalkDir(tree, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(filepath.Join(source, name))
		if err != nil {
			return err
		}
		defer f.Close()
		return k.add(name, 0, f)
	})
}

// add keeps a file of the package if the builder needs it.
func (k *kernel) add(name string, _ int64, content io.Reader) error {
	name = strings.TrimPrefix(name, "usr/")
	if version, is := strings.CutPrefix(name, "boot/vmlinuz-"); is {
		if k.vmlinuz != nil {
			return fmt.Errorf("a second kernel, after %s: %w", k.version, errdefs.ErrInvalidArgument)
		}
		data, err := readAll(content, maxKernelFile)
		k.version, k.vmlinuz = version, data
		return err
	}
	if strings.HasPrefix(name, "boot/config-") {
		data, err := readAll(content, maxOptions)
		k.options = data
		return err
	}
	rest, is := strings.CutPrefix(name, "lib/modules/")
	if !is {
		return nil
	}
	_, rest, _ = strings.Cut(rest, "/")
	switch {
	case rest == "modules.builtin":
		data, err := readAll(content, maxKernelFile)
		for line := range strings.FieldsSeq(string(data)) {
			k.builtin[moduleName(line)] = true
		}
		return err
	case strings.Contains(path.Base(rest), ".ko"):
		data, err := readAll(content, maxKernelFile)
		k.modules[rest] = data
		return err
	}
	return nil
}

// moduleName is what a module is called in the kernel, from its file's name.
func moduleName(file string) string {
	base, _, _ := strings.Cut(path.Base(file), ".ko")
	return strings.ReplaceAll(base, "-", "_")
}

// digest identifies what was loaded, whether from a package or a directory.
func (k *kernel) digest() string {
	h := sha256.New()
	part := func(name string, data []byte) {
		fmt.Fprintf(h, "%d %s %d\n", len(name), name, len(data))
		h.Write(data)
	}
	part("vmlinuz-"+k.version, k.vmlinuz)
	for _, name := range slices.Sorted(maps.Keys(k.modules)) {
		part(name, k.modules[name])
	}
	for _, name := range slices.Sorted(maps.Keys(k.builtin)) {
		part("builtin "+name, nil)
	}
	return hex.EncodeToString(h.Sum(nil))
}
