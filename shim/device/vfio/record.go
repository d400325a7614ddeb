package vfio

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/pkg/atomicfile"
	"golang.org/x/sys/unix"
)

// Owner is whose device it is.
type Owner struct {
	// Dir is the pod's state directory, by which a later process finds what the pod has left.
	Dir string `json:"dir"`
	// Pod is the sandbox id, for people.
	Pod string `json:"pod"`
}

// record is what the node keeps of a device that is in use. It is written before the device is touched.
type record struct {
	Owner Owner `json:"owner"`
	// Touched is set before anything is done to the device; until then there is nothing to take back.
	Touched bool `json:"touched,omitempty"`
	// Rebound is set when the device was taken from Driver, with Override in its file driver_override.
	Rebound  bool   `json:"rebound,omitempty"`
	Driver   string `json:"driver,omitempty"`
	Override string `json:"override,omitempty"`
}

func (m *Manager) recordPath(address string) string { return filepath.Join(m.Dir, address+".json") }
func (m *Manager) lockPath(address string) string   { return filepath.Join(m.Dir, address+".lock") }

// readRecord returns nil when the device is nobody's.
func (m *Manager) readRecord(address string) (*record, error) {
	raw, err := os.ReadFile(m.recordPath(address))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read record of device %s: %w", address, err)
	}
	r := new(record)
	if err := json.Unmarshal(raw, r); err != nil {
		return nil, fmt.Errorf("record %s of a device: %w", m.recordPath(address), err)
	}
	return r, nil
}

func (m *Manager) writeRecord(address string, r record) error {
	raw, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode record of device %s: %w", address, err)
	}
	file, err := atomicfile.New(m.recordPath(address), 0o600)
	if err != nil {
		return fmt.Errorf("write record of device %s: %w", address, err)
	}
	if _, err := file.Write(raw); err != nil {
		return errors.Join(fmt.Errorf("write record of device %s: %w", address, err), file.Cancel())
	}
	if err := file.Close(); err != nil {
		return fmt.Errorf("write record of device %s: %w", address, err)
	}
	return nil
}

func (m *Manager) removeRecord(address string) error {
	if err := os.Remove(m.recordPath(address)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove record of device %s: %w", address, err)
	}
	return nil
}

// errInUse is what lock returns when the device's owner lives.
var errInUse = errors.New("in use")

// lock takes a device's lock. The file stays: removing it would let two processes lock two files of one name.
func (m *Manager) lock(address string) (*os.File, error) {
	file, err := os.OpenFile(m.lockPath(address), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock device %s: %w", address, err)
	}
	for err = unix.EINTR; errors.Is(err, unix.EINTR); {
		err = unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err == nil {
		return file, nil
	}
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = errInUse
	}
	return nil, errors.Join(fmt.Errorf("lock device %s: %w", address, err), file.Close())
}
