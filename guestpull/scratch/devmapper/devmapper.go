package devmapper

import (
	"encoding/binary"
	"fmt"
	"os"
	"unsafe"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// control is the device mapper's own device.
const control = "/dev/mapper/control"

// maxParams bounds the parameters of a table, in bytes.
const maxParams = 4096

// SectorSize is the unit of sizes, in bytes.
const SectorSize = 512

// Table says what a device consists of: one target.
type Table struct {
	// Target is the kernel's name of the kind of device, such as crypt.
	Target string
	// Sectors is the device's size.
	Sectors int64
	// Params are the target's. They may hold a key: Create and Load forget them.
	Params []byte
	// ReadOnly makes a device that cannot be written.
	ReadOnly bool
}

// Mapper makes devices. It is safe for concurrent use.
type Mapper struct {
	control *os.File
}

// Open reaches the device mapper, whose kernel module must be loaded.
func Open() (*Mapper, error) {
	file, err := os.OpenFile(control, os.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the device mapper: %w", err)
	}
	return &Mapper{control: file}, nil
}

// Close lets go of the device mapper. Devices stay.
func (m *Mapper) Close() error { return m.control.Close() }

// Create makes a device that works by the table, and returns its node. When it fails nothing is left.
func (m *Mapper) Create(name string, table Table) (node string, retErr error) {
	defer clear(table.Params)
	reply, err := m.call(unix.DM_DEV_CREATE, name, 0, nil)
	if err != nil {
		return "", fmt.Errorf("make device %s: %w", name, err)
	}
	defer func() {
		if retErr != nil {
			_ = m.Remove(name) // the first error says more
		}
	}()
	if err := m.Load(name, table); err != nil {
		return "", err
	}
	return fmt.Sprintf("/dev/dm-%d", unix.Minor(reply.Dev)), nil
}

// Load gives a device, which must not be in use, another table.
func (m *Mapper) Load(name string, table Table) error {
	defer clear(table.Params)
	if len(table.Params) > maxParams || len(table.Target) >= 16 {
		return fmt.Errorf("table of device %s: target of %d bytes, parameters of %d: %w", name, len(table.Target), len(table.Params), errdefs.ErrInvalidArgument)
	}
	// The kernel clears its own copy, in which a key may be.
	flags := uint32(unix.DM_SECURE_DATA_FLAG)
	if table.ReadOnly {
		flags |= unix.DM_READONLY_FLAG
	}
	if _, err := m.call(unix.DM_TABLE_LOAD, name, flags, &table); err != nil {
		return fmt.Errorf("load %s table of device %s: %w", table.Target, name, err)
	}
	if _, err := m.call(unix.DM_DEV_SUSPEND, name, 0, nil); err != nil { // without its flag it resumes
		return fmt.Errorf("start device %s: %w", name, err)
	}
	return nil
}

// Remove removes a device that nobody uses.
func (m *Mapper) Remove(name string) error {
	if _, err := m.call(unix.DM_DEV_REMOVE, name, 0, nil); err != nil {
		return fmt.Errorf("remove device %s: %w", name, err)
	}
	return nil
}

const (
	headerSize = int(unsafe.Sizeof(unix.DmIoctl{}))
	specSize   = int(unsafe.Sizeof(unix.DmTargetSpec{}))
)

// call does one ioctl on the named device, with the table if there is one.
func (m *Mapper) call(request uint, name string, flags uint32, table *Table) (*unix.DmIoctl, error) {
	if len(name) >= unix.DM_NAME_LEN {
		return nil, fmt.Errorf("name of %d bytes: %w", len(name), errdefs.ErrInvalidArgument)
	}
	size := headerSize
	if table != nil {
		size += (specSize + len(table.Params) + 1 + 7) &^ 7
	}
	// In words, for the alignment of the header.
	words := make([]uint64, (size+7)/8)
	buf := unsafe.Slice((*byte)(unsafe.Pointer(&words[0])), size) //nolint:gosec // words has that many bytes
	defer clear(buf)
	header := (*unix.DmIoctl)(unsafe.Pointer(&words[0])) //nolint:gosec // words is aligned for it and no shorter
	header.Version = [3]uint32{4, 0, 0}
	header.Data_size, header.Data_start, header.Flags = uint32(size), uint32(headerSize), flags
	copy(header.Name[:], name)
	if table != nil {
		header.Target_count = 1
		encode(buf[headerSize:], table)
	}
	//nolint:gosec // the kernel reads and writes as many bytes as the header says
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, m.control.Fd(), uintptr(request), uintptr(unsafe.Pointer(header))); errno != 0 {
		return nil, errno
	}
	reply := *header
	return &reply, nil
}

// encode writes struct dm_target_spec and the parameters after it.
func encode(buf []byte, table *Table) {
	binary.NativeEndian.PutUint64(buf[8:], uint64(table.Sectors))
	copy(buf[24:40], table.Target)
	copy(buf[specSize:], table.Params)
}
