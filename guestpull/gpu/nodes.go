package gpu

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Minor numbers of the driver's nodes, from its own documentation.
const (
	minorControl = 255
	maxMinor     = 254
)

// MakeNode makes a character device that everybody may open, as the driver itself does.
type MakeNode func(path string, major, minor uint32) error

// MakeDevice is the kernel's own call. A node that is there with the same number stays.
func MakeDevice(path string, major, minor uint32) error {
	number := unix.Mkdev(major, minor)
	var stat unix.Stat_t
	if err := unix.Lstat(path, &stat); err == nil && stat.Mode&unix.S_IFMT == unix.S_IFCHR && stat.Rdev == number {
		return nil
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := unix.Mknod(path, unix.S_IFCHR|0o666, int(number)); err != nil {
		return fmt.Errorf("make device node: %w", err)
	}
	return os.Chmod(path, 0o666) // whatever the umask says
}

// makeNodes makes the nodes of the driver's devices: no udev does it in a guest.
func makeNodes(root string, t Topology, mknod MakeNode) error {
	majors, err := characterDevices(filepath.Join(root, "proc/devices"))
	if err != nil {
		return err
	}
	dev := func(name string) string { return filepath.Join(root, "dev", name) }
	driver, has := majors["nvidia"]
	if !has {
		driver, has = majors["nvidia-frontend"] // its name before version 570
	}
	if !has {
		return fmt.Errorf("the NVIDIA driver has no devices (see proc/devices): %w", errdefs.ErrFailedPrecondition)
	}
	var failed []error
	node := func(name string, major, minor uint32) {
		if err := mknod(dev(name), major, minor); err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", name, err))
		}
	}
	minors, err := gpuMinors(filepath.Join(root, "proc/driver/nvidia/gpus"))
	if err != nil {
		return err
	}
	if len(minors) != t.GPUs {
		return fmt.Errorf("the driver has taken %d of %d GPUs: see the kernel's messages of NVRM: %w", len(minors), t.GPUs, errdefs.ErrFailedPrecondition)
	}
	node("nvidiactl", driver, minorControl)
	for _, minor := range minors {
		node("nvidia"+strconv.FormatUint(uint64(minor), 10), driver, minor)
	}
	if major, has := majors["nvidia-uvm"]; has {
		node("nvidia-uvm", major, 0)
		node("nvidia-uvm-tools", major, 1)
	}
	if major, has := majors["nvidia-nvswitch"]; has {
		node("nvidia-nvswitchctl", major, minorControl)
		for i := range t.Switches {
			node("nvidia-nvswitch"+strconv.Itoa(i), major, uint32(i))
		}
	}
	return errors.Join(failed...)
}

// characterDevices reads the major numbers of the kernel's character devices.
func characterDevices(file string) (map[string]uint32, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	out := map[string]uint32{}
	lines := bufio.NewScanner(f)
	for lines.Scan() && !strings.HasPrefix(lines.Text(), "Block devices") {
		fields := strings.Fields(lines.Text())
		if len(fields) != 2 {
			continue
		}
		if major, err := strconv.ParseUint(fields[0], 10, 12); err == nil {
			out[fields[1]] = uint32(major)
		}
	}
	return out, lines.Err()
}

// gpuMinors reads which number the driver gave to each GPU.
func gpuMinors(dir string) ([]uint32, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []uint32
	for _, entry := range entries {
		text, err := os.ReadFile(filepath.Join(dir, entry.Name(), "information"))
		if err != nil {
			return nil, err
		}
		_, rest, found := strings.Cut(string(text), "Device Minor:")
		line, _, _ := strings.Cut(rest, "\n")
		minor, err := strconv.ParseUint(strings.TrimSpace(line), 10, 8)
		if !found || err != nil || minor > maxMinor {
			return nil, fmt.Errorf("the driver tells no number of GPU %s: %w", entry.Name(), errdefs.ErrFailedPrecondition)
		}
		out = append(out, uint32(minor))
	}
	return out, nil
}
