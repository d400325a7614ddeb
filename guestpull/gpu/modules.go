package gpu

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"
)

// maxModuleList bounds a list of modules, in bytes.
const maxModuleList = 8 << 20

// Insert hands a module's file with its parameters to the kernel.
type Insert func(file, params string) error

// InsertModule is the kernel's own call. The kernel unpacks modules that are compressed.
func InsertModule(file, params string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	flags := 0
	if filepath.Ext(file) != ".ko" {
		flags = unix.MODULE_INIT_COMPRESSED_FILE
	}
	return unix.FinitModule(int(f.Fd()), params, flags)
}

// modules loads kernel modules with what they depend on.
type modules struct {
	dirs   []string // lib/modules/VERSION, in the order in which they are looked through
	insert Insert
}

// load loads a module. NotFound: it is in no list of modules.
func (m *modules) load(ctx context.Context, name, params string) error {
	for _, dir := range m.dirs {
		files, err := closure(dir, name)
		if err != nil {
			return err
		}
		for i, file := range files {
			given := ""
			if i == len(files)-1 {
				given = params
			}
			err := m.insert(file, given)
			switch {
			case errors.Is(err, unix.EEXIST):
			case errors.Is(err, unix.ENODEV):
				return fmt.Errorf("kernel module %s finds no device that it can drive: %w: %w", name, err, errdefs.ErrFailedPrecondition)
			case err != nil:
				return fmt.Errorf("load kernel module %s: %w", filepath.Base(file), err)
			}
		}
		if len(files) > 0 {
			log.G(ctx).WithField("module", name).Info("kernel module is loaded")
			return nil
		}
	}
	return fmt.Errorf("kernel module %s is not in %s: the extension must be made for this guest's kernel: %w",
		name, strings.Join(m.dirs, " or "), errdefs.ErrNotFound)
}

// closure lists a module's file after those that it depends on, from dir's modules.dep. It is empty when the module is not there.
func closure(dir, name string) ([]string, error) {
	data, err := os.ReadFile(filepath.Join(dir, "modules.dep"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read list of kernel modules: %w", err)
	}
	if len(data) > maxModuleList {
		return nil, fmt.Errorf("list of kernel modules in %s has more than %d bytes: %w", dir, maxModuleList, errdefs.ErrFailedPrecondition)
	}
	lines := bufio.NewScanner(bytes.NewReader(data))
	lines.Buffer(nil, maxModuleList)
	for lines.Scan() {
		file, needs, _ := strings.Cut(lines.Text(), ":")
		if moduleName(file) != name {
			continue
		}
		// What a module needs comes with what that needs after it.
		files := strings.Fields(needs)
		out := make([]string, 0, len(files)+1)
		for i := range files {
			out = append(out, filepath.Join(dir, files[len(files)-1-i]))
		}
		return append(out, filepath.Join(dir, file)), nil
	}
	return nil, lines.Err()
}

func moduleName(file string) string {
	base, _, _ := strings.Cut(filepath.Base(file), ".ko")
	return strings.ReplaceAll(base, "_", "-")
}

// modulesDisabled forbids to load modules for as long as the kernel runs.
const modulesDisabled = "proc/sys/kernel/modules_disabled"

// lockModules forbids it.
func lockModules(root string) error {
	if err := os.WriteFile(filepath.Join(root, modulesDisabled), []byte("1\n"), 0); err != nil {
		return fmt.Errorf("forbid to load further kernel modules: %w", err)
	}
	return nil
}
