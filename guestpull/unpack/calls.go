package unpack

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// calls makes the system calls of which every file takes some. Go's scheduler is told of system calls, which costs about as
// much as a short one, and it wakes its watchdog for those that take longer than 20 microseconds, as large writes do.
// direct leaves that out. It is only for a process that does nothing else, since whoever waits for a disk there holds up all.
type calls struct{ direct bool }

// call passes its arguments on; a pointer in them stays good until it returns.
//
//go:uintptrescapes
func (c calls) call(number, a, b, d, e uintptr) (int, error) {
	var r uintptr
	var errno unix.Errno
	if c.direct {
		r, _, errno = unix.RawSyscall6(number, a, b, d, e, 0, 0)
	} else {
		r, _, errno = unix.Syscall6(number, a, b, d, e, 0, 0)
	}
	if errno != 0 {
		return -1, errno
	}
	return int(r), nil
}

func (c calls) openat(dir int, name string, flags int, mode uint32) (int, error) {
	path, err := unix.BytePtrFromString(name)
	if err != nil {
		return -1, err
	}
	return c.call(unix.SYS_OPENAT, uintptr(dir), uintptr(unsafe.Pointer(path)), uintptr(flags), uintptr(mode)) //nolint:gosec // as call says
}

// pwrite writes p, which must not be empty.
func (c calls) pwrite(fd int, p []byte, at int64) (int, error) {
	return c.call(unix.SYS_PWRITE64, uintptr(fd), uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)), uintptr(at)) //nolint:gosec // as call says
}

func (c calls) utimensat(dir int, name string, times *[2]unix.Timespec, flags int) error {
	path, err := unix.BytePtrFromString(name)
	if err != nil {
		return err
	}
	_, err = c.call(unix.SYS_UTIMENSAT, uintptr(dir), uintptr(unsafe.Pointer(path)), uintptr(unsafe.Pointer(times)), uintptr(flags)) //nolint:gosec // as call says
	return err
}

func (c calls) close(fd int) error {
	_, err := c.call(unix.SYS_CLOSE, uintptr(fd), 0, 0, 0)
	return err
}
