package boot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// inherited is what another init has done before it became this program: NVIDIA's init NVRC does, and calls the agent
// /usr/bin/kata-agent. The zero value is the world of a first process that nobody was before.
type inherited struct {
	// byInit holds when there was such an init.
	byInit bool
	// mounts are the types of file systems by mount point.
	mounts map[string]string
}

// procMounts lists mounts. That it is there at all means that somebody has mounted /proc before.
const procMounts = "/proc/self/mountinfo"

// lookAround finds out what is mounted already.
func lookAround() (inherited, error) {
	f, err := os.Open(procMounts)
	if errors.Is(err, fs.ErrNotExist) {
		return inherited{}, nil
	}
	if err != nil {
		return inherited{}, fmt.Errorf("see what is mounted: %w", err)
	}
	defer f.Close()
	rows, err := mountinfo.GetMountsFromReader(f, nil)
	if err != nil {
		return inherited{}, fmt.Errorf("see what is mounted: %w", err)
	}
	world := inherited{byInit: true, mounts: map[string]string{}}
	for _, row := range rows {
		world.mounts[row.Mountpoint] = row.FSType // of several at one place the last is what one sees
	}
	return world, nil
}

// has tells whether the file system of a row is mounted at its place.
func (i inherited) has(row mountPoint) bool { return i.mounts[row.target] == row.fstype }

// bareRoot tells whether the root is the kernel's own, which has no parent.
func (i inherited) bareRoot() bool { return !i.byInit || i.mounts["/"] == "rootfs" }

// adjust gives an inherited file system in memory the options of the row, its size above all: containers live there.
func (p mountPoint) adjust() error {
	if p.fstype != "tmpfs" {
		return nil
	}
	return p.tryMount("", unix.MS_REMOUNT)
}

// resolver is the file with name servers, and resolverCopy what stands in for it on a root that cannot be written.
const (
	resolver     = "/etc/resolv.conf"
	resolverCopy = "/run/resolv.conf"
)

// settleIn makes of an inherited machine what Init makes of a bare one: the agent's own score, which containers would
// inherit, and name servers that can be written.
func (i inherited) settleIn() error {
	if !i.byInit {
		return nil
	}
	sayf("another init has started this machine, its mounts are kept")
	// No process of the machine's may count as more worth than others; the first one is never chosen anyway.
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("0"), 0); err != nil {
		return fmt.Errorf("give up the inherited out-of-memory score: %w", err)
	}
	if unix.Access(resolver, unix.W_OK) == nil {
		return nil
	}
	if _, err := os.Stat(resolver); errors.Is(err, fs.ErrNotExist) && unix.Access("/etc", unix.W_OK) == nil {
		return nil // it can be made
	}
	if err := os.WriteFile(resolverCopy, nil, 0o644); err != nil {
		return fmt.Errorf("make room for name servers: %w", err)
	}
	if err := unix.Mount(resolverCopy, resolver, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("make %s of the read-only root writable: %w", resolver, err)
	}
	return nil
}
