package guestimage

import (
	"bufio"
	"bytes"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
)

// maxOptions bounds a kernel's configuration, in bytes.
const maxOptions = 4 << 20

// needed are the options without which a guest does not start, or runs containers with less than their specification asks
// for. What may be a module is in roots instead: there the file itself is looked for.
var needed = []string{
	// Starting: the entry point, the initramfs, the devices that the control channel and disks come by, the console.
	"PVH", "BLK_DEV_INITRD", "DEVTMPFS", "PCI_MSI", "VIRTIO_PCI", "VIRTIO_CONSOLE", "SERIAL_8250_CONSOLE", "HOTPLUG_PCI_ACPI",
	// Containers.
	"NAMESPACES", "UTS_NS", "TIME_NS", "IPC_NS", "USER_NS", "PID_NS", "NET_NS",
	"CGROUPS", "MEMCG", "BLK_CGROUP", "CGROUP_SCHED", "CFS_BANDWIDTH", "CGROUP_PIDS", "CPUSETS", "CGROUP_HUGETLB",
	"CGROUP_BPF", "BPF_SYSCALL", "SECCOMP_FILTER", "SYSVIPC", "POSIX_MQUEUE", "KEYS",
	"TMPFS", "TMPFS_XATTR", "TMPFS_POSIX_ACL", "INET", "IPV6", "UNIX", "PACKET",
}

// checkOptions names every option that a guest needs and the kernel was built without, as an
// errdefs.ErrFailedPrecondition. A kernel whose configuration is not known passes.
func checkOptions(config []byte) error {
	if len(config) == 0 {
		return nil
	}
	have := map[string]bool{}
	lines := bufio.NewScanner(bytes.NewReader(config))
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), "=")
		have[strings.TrimPrefix(name, "CONFIG_")] = value == "y"
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("read the kernel's configuration: %w", err)
	}
	var missing []string
	for _, name := range needed {
		if !have[name] {
			missing = append(missing, "CONFIG_"+name)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("it was built without %s, which a guest needs: %w", strings.Join(missing, ", "), errdefs.ErrFailedPrecondition)
	}
	return nil
}
