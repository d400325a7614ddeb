package boot

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// mountPoint is one row of the mount table.
type mountPoint struct {
	source, target, fstype string
	flags                  uintptr
	data                   string
	mode                   os.FileMode
	// optional file systems are skipped when the kernel does not know them.
	optional bool
}

// largePages lets files have large pages where these do not reach over their end: large files are written and read several
// times as fast, and take no more memory. Kernels without transparent huge pages know no such option.
const largePages = ",huge=within_size"

const (
	noExecSuidDev = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	noSuidDev     = unix.MS_NOSUID | unix.MS_NODEV
)

// baseMounts is what the guest itself needs to start, parents before children.
var baseMounts = []mountPoint{
	{"proc", "/proc", "proc", noExecSuidDev, "", 0o555, false},
	{"sysfs", "/sys", "sysfs", noExecSuidDev, "", 0o555, false},
	{"devtmpfs", "/dev", "devtmpfs", unix.MS_NOSUID, "mode=0755", 0o755, false},
	// Container roots and unpacked images live below /run: programs and set-uid files there must work.
	{"run", "/run", "tmpfs", 0, "mode=0755,size=100%,nr_inodes=0" + largePages, 0o755, false},
}

// containerMounts is what containers need besides. It is mounted beside the start of the guest's server.
var containerMounts = []mountPoint{
	{"devpts", "/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "ptmxmode=0666,mode=0620,gid=5", 0o755, false},
	{"shm", "/dev/shm", "tmpfs", noExecSuidDev, "mode=1777", 0o1777, false},
	{"mqueue", "/dev/mqueue", "mqueue", noExecSuidDev, "", 0o1777, true},
	{"tmp", "/tmp", "tmpfs", noSuidDev, "mode=1777", 0o1777, false},
	{"cgroup2", cgroupRoot, "cgroup2", noExecSuidDev, "nsdelegate", 0o555, false},
	{"securityfs", "/sys/kernel/security", "securityfs", noExecSuidDev, "", 0o555, true},
}

// lateMounts are the file systems that modules bring.
var lateMounts = []mountPoint{
	{"configfs", "/sys/kernel/config", "configfs", noExecSuidDev, "", 0o555, true},
}

// links are the names in /dev that programs expect and devtmpfs does not make.
var links = map[string]string{
	"/dev/fd":     "/proc/self/fd",
	"/dev/stdin":  "/proc/self/fd/0",
	"/dev/stdout": "/proc/self/fd/1",
	"/dev/stderr": "/proc/self/fd/2",
	"/dev/ptmx":   "pts/ptmx",
}

const cgroupRoot = "/sys/fs/cgroup"

// mountAll mounts a table. What is there already is kept.
func mountAll(table []mountPoint, world inherited) error {
	for _, row := range table {
		step := row.mount
		if world.has(row) {
			step = row.adjust
		}
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// mountForContainers mounts what containers need, makes the links and hands the cgroup controllers down.
func mountForContainers(world inherited) error {
	if err := mountAll(containerMounts, world); err != nil {
		return err
	}
	for name, target := range links {
		// devtmpfs has a ptmx node of its own that belongs to no devpts instance.
		if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove %s: %w", name, err)
		}
		if err := os.Symlink(target, name); err != nil {
			return fmt.Errorf("link %s: %w", name, err)
		}
	}
	return delegateControllers(cgroupRoot)
}

func (p mountPoint) mount() error {
	if err := os.MkdirAll(p.target, p.mode); err != nil {
		// securityfs and configfs have their directory only when the kernel has the file system.
		if p.optional {
			return nil
		}
		return fmt.Errorf("make mount point %s: %w", p.target, err)
	}
	err := p.tryMount(p.source, 0)
	if p.optional && (errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT)) {
		return nil
	}
	return err
}

// tryMount mounts a row, or changes the mount that is there with the flag for it.
func (p mountPoint) tryMount(source string, flags uintptr) error {
	err := unix.Mount(source, p.target, p.fstype, p.flags|flags, p.data)
	if small, large := strings.CutSuffix(p.data, largePages); large && errors.Is(err, unix.EINVAL) {
		err = unix.Mount(source, p.target, p.fstype, p.flags|flags, small)
	}
	if err != nil {
		return fmt.Errorf("mount %s at %s: %w", p.fstype, p.target, err)
	}
	return nil
}

// delegateControllers lets child cgroups use every controller that the kernel has.
func delegateControllers(root string) error {
	have, err := os.ReadFile(root + "/cgroup.controllers")
	if err != nil {
		return fmt.Errorf("read cgroup controllers: %w", err)
	}
	names := strings.Fields(string(have))
	control := root + "/cgroup.subtree_control"
	// In one go, because each change costs the kernel milliseconds; one by one only where one cannot be delegated.
	if len(names) == 0 || os.WriteFile(control, []byte("+"+strings.Join(names, " +")), 0) == nil {
		return nil
	}
	for _, name := range names {
		if err := os.WriteFile(control, []byte("+"+name), 0); err != nil && isNeeded(name) {
			return fmt.Errorf("delegate cgroup controller %s: %w", name, err)
		}
	}
	return nil
}

// isNeeded tells the controllers without which a container's limits would be silently ignored.
func isNeeded(controller string) bool {
	switch controller {
	case "cpu", "cpuset", "memory", "pids", "io":
		return true
	}
	return false
}
