package gpu

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/coffer-project/coffer/guestpull/extension"
)

// ExtensionName is the name of the extension with the driver.
const ExtensionName = "gpu"

// place is where NVIDIA's files are: in the extension, or without one in the guest's own image. Their paths within are the same.
type place struct {
	extension *extension.Extension // nil: none
	root      string               // of the guest, "/" but in tests
}

// file is where a file is.
func (p place) file(path string) string {
	if p.extension != nil {
		return p.extension.Path(filepath.Base(path), path)
	}
	return filepath.Join(p.root, path)
}

// dir is below which the driver's files are.
func (p place) dir() string {
	if p.extension != nil {
		return p.extension.Dir
	}
	return p.root
}

// libraryDirs are where the loader looks for libraries, and lib64 where programs look for the loader.
var libraryDirs = []string{"lib64", "lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"}

// firmwarePath tells the kernel where else firmware is.
const firmwarePath = "sys/module/firmware_class/parameters/path"

// maxFirmwarePath bounds it, in bytes: the kernel keeps 256.
const maxFirmwarePath = 255

// expose lets programs find the extension's libraries and the kernel its firmware. The guest's own image has no libraries, so that
// links do; an image that has its own keeps them, and is expected to list the extension's to its loader.
func (p place) expose() error {
	if p.extension == nil {
		return nil
	}
	for _, dir := range libraryDirs {
		if info, err := os.Stat(filepath.Join(p.dir(), dir)); err != nil || !info.IsDir() {
			continue
		}
		name := filepath.Join(p.root, dir)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return fmt.Errorf("link the driver's libraries: %w", err)
		}
		if err := os.Symlink(filepath.Join(p.dir(), dir), name); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("link the driver's libraries: %w", err)
		}
	}
	firmware := filepath.Join(p.dir(), "lib/firmware")
	if _, err := os.Stat(firmware); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if len(firmware) > maxFirmwarePath {
		return fmt.Errorf("path of the firmware has more than %d bytes", maxFirmwarePath)
	}
	if err := os.WriteFile(filepath.Join(p.root, firmwarePath), []byte(firmware), 0); err != nil {
		return fmt.Errorf("tell the kernel where firmware is: %w", err)
	}
	return nil
}
