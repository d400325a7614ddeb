package manager

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/pkg/atomicfile"
	"github.com/containerd/errdefs"
)

// recordName is the file in the bundle of the container or sandbox that a shim was started for.
const recordName = "coffer.json"

// maxRecordBytes bounds every JSON file that is read from a bundle here; a container's config.json is the largest.
const maxRecordBytes = 4 << 20

// Record is what the processes of one shim tell each other through its bundle.
type Record struct {
	// ConfigPath is the runtime configuration that containerd's options name; empty means the default.
	ConfigPath string `json:"config_path"`
	// Address is the shim's socket.
	Address string `json:"address"`
	// StateDir is the pod's state directory, empty until the pod is created.
	StateDir string `json:"state_dir,omitempty"`
	// Hooks says that the specification's hooks for the container's end are still to be run.
	Hooks bool `json:"hooks,omitempty"`
}

// ReadRecord reads the record of a bundle. It fails with errdefs.ErrNotFound when the bundle has none.
func ReadRecord(bundle string) (*Record, error) {
	record := new(Record)
	if err := readJSON(filepath.Join(bundle, recordName), record); err != nil {
		return nil, fmt.Errorf("read shim record of bundle %s: %w", bundle, err)
	}
	return record, nil
}

// Write stores the record in a bundle; a crash leaves the old one or the new one.
func (r *Record) Write(bundle string) error {
	raw, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode shim record: %w", err)
	}
	file, err := atomicfile.New(filepath.Join(bundle, recordName), 0o600)
	if err != nil {
		return fmt.Errorf("write shim record of bundle %s: %w", bundle, err)
	}
	if _, err := file.Write(raw); err != nil {
		return errors.Join(fmt.Errorf("write shim record of bundle %s: %w", bundle, err), file.Cancel())
	}
	if err := file.Close(); err != nil {
		return fmt.Errorf("write shim record of bundle %s: %w", bundle, err)
	}
	return nil
}

// readJSON decodes a bounded file; a missing one is errdefs.ErrNotFound.
func readJSON(path string, into any) error {
	file, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%s: %w", path, errdefs.ErrNotFound)
	}
	if err != nil {
		return err
	}
	defer file.Close()
	raw, err := io.ReadAll(io.LimitReader(file, maxRecordBytes+1))
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	if len(raw) > maxRecordBytes {
		return fmt.Errorf("%s is larger than %d bytes: %w", path, maxRecordBytes, errdefs.ErrInvalidArgument)
	}
	if err := json.Unmarshal(raw, into); err != nil {
		return fmt.Errorf("decode %s: %w", path, err)
	}
	return nil
}
