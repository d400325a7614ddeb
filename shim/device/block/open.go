package block

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// opener opens a device of the host.
type opener func(Device) (*os.File, error)

// openDevice finds a device by its number. The specification does not tell its path on the host, so that the kernel is
// asked for the name, and the file that the name leads to must be that very device.
func openDevice(device Device) (*os.File, error) {
	return openNamed(device, fmt.Sprintf("/sys/dev/block/%d:%d", device.Major, device.Minor), "/dev")
}

func openNamed(device Device, sysfs, dev string) (_ *os.File, retErr error) {
	uevent, err := os.ReadFile(filepath.Join(sysfs, "uevent"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("this host has no such device: %w", errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	name := ""
	for line := range strings.Lines(string(uevent)) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), "DEVNAME="); ok {
			name = value
		}
	}
	if !filepath.IsLocal(name) {
		return nil, fmt.Errorf("the kernel names no node for it: %w", errdefs.ErrNotFound)
	}
	flag := os.O_RDWR
	if device.ReadOnly {
		flag = os.O_RDONLY
	}
	file, err := os.OpenFile(filepath.Join(dev, name), flag|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer func() {
		if retErr != nil {
			file.Close()
		}
	}()
	var st unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &st); err != nil {
		return nil, fmt.Errorf("look at %s: %w", file.Name(), err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK || st.Rdev != unix.Mkdev(device.Major, device.Minor) {
		return nil, fmt.Errorf("%s is another device: %w", file.Name(), errdefs.ErrFailedPrecondition)
	}
	return file, nil
}
