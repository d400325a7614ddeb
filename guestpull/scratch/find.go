package scratch

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
)

// serial is what the host calls the disk.
const serial = "scratch"

// sysBlock is where the kernel lists disks.
const sysBlock = "/sys/block"

// maxSize bounds the disk in bytes, above what any is: sums of such sizes do not overflow.
const maxSize = 1 << 56

// disk is the host's disk.
type disk struct {
	node     string
	size     int64 // bytes
	readOnly bool
}

// find looks for the one virtio disk that the host calls scratch. Whichever disk that is: it is overwritten, and nothing on
// it is used.
func find(sys string) (disk, error) {
	serials, err := filepath.Glob(filepath.Join(sys, "vd*", "serial"))
	if err != nil {
		return disk{}, err
	}
	found := disk{}
	for _, file := range serials {
		if text, err := os.ReadFile(file); err != nil || strings.TrimSpace(string(text)) != serial {
			continue
		}
		dir := filepath.Dir(file)
		if found.node != "" {
			return disk{}, fmt.Errorf("there are two: %w", errdefs.ErrFailedPrecondition)
		}
		if found, err = describe(dir); err != nil {
			return disk{}, err
		}
	}
	if found.node == "" {
		return disk{}, fmt.Errorf("the host has promised one and plugged none in (serial %s): %w", serial, errdefs.ErrNotFound)
	}
	return found, nil
}

func describe(dir string) (disk, error) {
	sectors, err := number(filepath.Join(dir, "size"))
	if err != nil {
		return disk{}, err
	}
	readOnly, err := number(filepath.Join(dir, "ro"))
	if err != nil {
		return disk{}, err
	}
	if sectors > maxSize/512 {
		return disk{}, fmt.Errorf("it has %d sectors: %w", sectors, errdefs.ErrFailedPrecondition)
	}
	return disk{node: "/dev/" + filepath.Base(dir), size: sectors * 512, readOnly: readOnly != 0}, nil
}

func number(file string) (int64, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("%s says %.32q: %w", filepath.Base(file), text, errdefs.ErrFailedPrecondition)
	}
	return n, nil
}
