package store

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"strconv"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const mib = 1 << 20

// reserve is what a store leaves free of its file system, in bytes: a guest whose memory is full to the last page is
// killed instead of answering.
func reserve(total int64) int64 {
	return min(max(total/16, 16*mib), total/4, 256*mib)
}

// Free returns how many bytes may still be written below a folder of the store. In a memory file system that is what the file
// system and the memory both have left.
func (s *Store) Free(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, fmt.Errorf("look at free space of the image store: %w", err)
	}
	free, total := int64(st.Bavail)*st.Bsize, int64(st.Blocks)*st.Bsize
	switch st.Type {
	case unix.TMPFS_MAGIC, unix.RAMFS_MAGIC:
		available, all, err := memory()
		if err != nil {
			return 0, err
		}
		// A tmpfs without a size and every ramfs report no blocks at all.
		if total == 0 || available < free {
			free, total = available, all
		}
	}
	keep := reserve(total)
	if s.disk != nil && s.volumeAt(dir) == s.memory {
		keep = total / 2 // there is another place
	}
	return max(free-keep, 0), nil
}

// NoDevices reports whether device nodes in the store's memory are dead, because it is mounted nodev.
func (s *Store) NoDevices() bool {
	var st unix.Statfs_t
	if err := unix.Statfs(s.memory.layers, &st); err != nil {
		return false
	}
	return st.Flags&unix.ST_NODEV != 0
}

// memory returns what the kernel says could be used without swapping, and all memory, in bytes.
func memory() (available, total int64, err error) {
	raw, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, 0, fmt.Errorf("look at free memory: %w", err)
	}
	lines := bufio.NewScanner(bytes.NewReader(raw))
	for lines.Scan() {
		fields := bytes.Fields(lines.Bytes())
		if len(fields) < 2 {
			continue
		}
		kib, err := strconv.ParseInt(string(fields[1]), 10, 64)
		if err != nil {
			continue
		}
		switch string(fields[0]) {
		case "MemAvailable:":
			available = kib << 10
		case "MemTotal:":
			total = kib << 10
		}
	}
	if total == 0 {
		return 0, 0, fmt.Errorf("look at free memory: /proc/meminfo has no MemTotal: %w", errdefs.ErrNotImplemented)
	}
	return available, total, nil
}
