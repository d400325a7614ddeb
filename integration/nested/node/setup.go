package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/integration/nested/layout"
)

// mounts are those of any Linux system, in order.
var mounts = []struct{ fstype, target, options string }{
	{"proc", "/proc", ""},
	{"sysfs", "/sys", ""},
	{"devtmpfs", "/dev", "mode=0755"},
	{"devpts", "/dev/pts", "mode=0620,ptmxmode=0666"},
	{"tmpfs", "/dev/shm", "mode=1777"},
	{"mqueue", "/dev/mqueue", ""},
	{"tmpfs", "/run", "mode=0755"},
	{"cgroup2", "/sys/fs/cgroup", ""},
}

// modules are what a node needs before something asks the kernel for it by name.
var modules = []string{
	"overlay", "loop", "tun", "veth", "bridge", "sch_ingress", "cls_u32", "act_mirred", "vhost_vsock",
	"vfio_pci", "vfio_iommu_type1",
}

var environment = map[string]string{
	"PATH":         "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
	"HOME":         "/root",
	"TMPDIR":       layout.Temp,
	"COFFER_CACHE": layout.Cache,
	"COFFER_BIN":   layout.Bin,
	"COFFER_GUEST": layout.Guest,
	"COFFER_KEEP":  "1", // the logs are wanted after a failure, and the disk is thrown away
}

// setUp makes a booted kernel a system. The first thing is somebody to tell.
func setUp() error {
	if err := mountAll(); err != nil {
		return err
	}
	port, err := os.OpenFile(layout.Progress, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	for _, fd := range []int{1, 2} {
		if err := unix.Dup3(int(port.Fd()), fd, 0); err != nil {
			return err
		}
	}
	for name, value := range environment {
		if err := os.Setenv(name, value); err != nil {
			return err
		}
	}
	for _, name := range modules {
		if out, err := exec.Command("modprobe", name).CombinedOutput(); err != nil {
			return fmt.Errorf("load kernel module %s: %w: %s", name, err, strings.TrimSpace(string(out)))
		}
	}
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		return fmt.Errorf("set lo up: %w: %s", err, out)
	}
	return errors.Join(unix.Sethostname([]byte("node")), os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0))
}

func mountAll() error {
	for _, m := range mounts {
		if err := os.MkdirAll(m.target, 0o755); err != nil {
			return err
		}
		// The kernel may have mounted /dev by itself.
		if err := unix.Mount(m.fstype, m.target, m.fstype, 0, m.options); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	return nil
}
