package unpack

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// place answers what a descriptor of a directory alone does not: what the kernel calls it, and extended attributes of
// names in it, for which there is no call that takes a directory.
type place interface {
	// name is the path of an open directory, in which no link is left.
	name(dir int) (string, error)
	// setXattr sets an attribute of base in an open directory, of the directory itself for ".". Links are not followed.
	setXattr(dir int, base, key string, value []byte) error
}

// procPlace asks /proc.
type procPlace struct{}

func (procPlace) name(dir int) (string, error) { return os.Readlink(fdPath(dir)) }

func (procPlace) setXattr(dir int, base, key string, value []byte) error {
	return unix.Lsetxattr(fdPath(dir)+"/"+base, key, value, 0)
}

// ownPlace moves the working directory, where there is no /proc and nobody else uses it.
type ownPlace struct{}

func (ownPlace) name(dir int) (string, error) {
	if err := unix.Fchdir(dir); err != nil {
		return "", err
	}
	return unix.Getwd()
}

func (ownPlace) setXattr(dir int, base, key string, value []byte) error {
	if err := unix.Fchdir(dir); err != nil {
		return err
	}
	return unix.Lsetxattr(base, key, value, 0)
}

// fdPath is a path to what a descriptor stands for, for calls that take none.
func fdPath(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }
