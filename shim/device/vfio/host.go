package vfio

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/proto/lazyregexp"
)

// Host is where the kernel shows its devices. The zero value is this machine's.
type Host struct {
	// Sysfs is the root of sysfs, /sys when empty; Dev that of the device nodes, /dev when empty.
	Sysfs, Dev string
	// Write writes to a file of sysfs; nil means the file itself. Tests put a simulated kernel here.
	Write func(path, value string) error
}

func (h Host) sysfs(parts ...string) string {
	root := h.Sysfs
	if root == "" {
		root = "/sys"
	}
	return filepath.Join(append([]string{root}, parts...)...)
}

func (h Host) dev(parts ...string) string {
	root := h.Dev
	if root == "" {
		root = "/dev"
	}
	return filepath.Join(append([]string{root}, parts...)...)
}

// pci is a file of a device.
func (h Host) pci(address string, parts ...string) string {
	return h.sysfs(append([]string{"bus", "pci", "devices", address}, parts...)...)
}

// write gives a value to the kernel, which acts on it before it answers.
func (h Host) write(path, value string) error {
	if h.Write != nil {
		return h.Write(path, value)
	}
	file, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = file.WriteString(value)
	return errors.Join(err, file.Close())
}

// addressPattern is a PCI function as the kernel writes it: domain, bus, device, function.
var addressPattern = lazyregexp.New(`^[0-9a-f]{4,8}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]$`)

// number reads a file that holds one number, in any of C's notations.
func number(path string, bits int) (int64, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(raw)), 0, bits)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	return n, nil
}

// linkName is the last element of what a symbolic link points to; empty when there is no link.
func linkName(path string) (string, error) {
	target, err := os.Readlink(path)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	return filepath.Base(target), nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// notFound gives an absent file its class.
func notFound(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%w: %w", errdefs.ErrNotFound, err)
	}
	return err
}
