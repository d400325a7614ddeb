package jail

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// dropCapabilities keeps those for owners, modes and extended attributes. CAP_SYS_ADMIN is among them because nothing less
// writes attributes in trusted. and security.; of all that it allows otherwise no system call is left.
func dropCapabilities(devices bool) error {
	keep := []int{unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_FOWNER, unix.CAP_FSETID, unix.CAP_SETFCAP, unix.CAP_SYS_ADMIN}
	if devices {
		keep = append(keep, unix.CAP_MKNOD)
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	for _, c := range keep {
		data[c/32].Effective |= 1 << (c % 32)
		data[c/32].Permitted |= 1 << (c % 32)
	}
	err := everywhere(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&hdr)), uintptr(unsafe.Pointer(&data)), 0, 0, 0) //nolint:gosec // both live until the call returns
	runtime.KeepAlive(&data)
	return err
}
