package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/v2/pkg/atomicfile"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/shim/device/vfio"
	"github.com/coffer-project/coffer/shim/vm"
)

// recordName is the one file in a state directory that a later process reads.
const recordName = "pod.json"

// Record is what the process that comes after a killed shim needs to release a pod's resources. It is written before
// the first of them is acquired.
type Record struct {
	ID        string    `json:"id"`
	Namespace string    `json:"namespace"`
	Bundle    string    `json:"bundle"`
	NetNS     string    `json:"netns,omitempty"`
	CreatedAt time.Time `json:"created_at"`
	// PodName and PodNamespace are Kubernetes' names, empty outside it. ShimPID is the process that made the pod. All
	// three are for people.
	PodName      string `json:"pod_name,omitempty"`
	PodNamespace string `json:"pod_namespace,omitempty"`
	ShimPID      int    `json:"shim_pid,omitempty"`
}

func (r *Record) write(dir string) error {
	raw, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode pod record: %w", err)
	}
	file, err := atomicfile.New(filepath.Join(dir, recordName), 0o600)
	if err != nil {
		return fmt.Errorf("write pod record: %w", err)
	}
	if _, err := file.Write(raw); err != nil {
		return errors.Join(fmt.Errorf("write pod record: %w", err), file.Cancel())
	}
	if err := file.Close(); err != nil {
		return fmt.Errorf("write pod record: %w", err)
	}
	return nil
}

// ReadRecord reads the record in a state directory. It fails with errdefs.ErrNotFound when there is none.
func ReadRecord(dir string) (*Record, error) {
	raw, err := os.ReadFile(filepath.Join(dir, recordName))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("pod record in %s: %w", dir, errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("read pod record: %w", err)
	}
	record := new(Record)
	if err := json.Unmarshal(raw, record); err != nil {
		return nil, fmt.Errorf("decode pod record in %s: %w", dir, err)
	}
	return record, nil
}

// Reaper is the part of a Network that the process after a killed shim needs.
type Reaper interface {
	// Detach removes what an Attach of an earlier process left. It is idempotent.
	Detach(ctx context.Context, netns string) error
	// Remove removes the path of a namespace that an earlier process made. It is idempotent.
	Remove(path string) error
}

// hold takes the lock of a state directory that this process has made, which tells a pod with a shim from what a killed one
// has left: the kernel gives it back with the process, and release does. It waits for those
// who are just asking Orphaned; nobody else can hold it.
func hold(dir string) (release func() error, err error) { return lock(dir, unix.LOCK_EX) }

// Orphaned tells whether no shim holds a state directory. It fails with errdefs.ErrNotFound when there is none.
func Orphaned(dir string) (bool, error) {
	// Shared, so that those who ask at the same time do not take each other for a shim.
	release, err := lock(dir, unix.LOCK_SH|unix.LOCK_NB)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return false, fmt.Errorf("state directory %s: %w", dir, errdefs.ErrNotFound)
	case errors.Is(err, unix.EWOULDBLOCK):
		return false, nil
	case err != nil:
		return false, err
	}
	return true, release()
}

func lock(dir string, how int) (release func() error, err error) {
	file, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("open state directory: %w", err)
	}
	for err = unix.EINTR; errors.Is(err, unix.EINTR); {
		err = unix.Flock(int(file.Fd()), how)
	}
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("lock state directory %s: %w", dir, err)
	}
	return file.Close, nil
}

// Reap releases what a pod whose shim died left behind: its VM, its physical devices, its network, its state directory, in this
// order. It is idempotent, succeeds when nothing is there, and keeps the directory when something else could not be released, so
// that it can be tried again.
func Reap(ctx context.Context, driver vm.Driver, network Reaper, devices vfio.Host, dir string) error {
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	var faults []error
	if err := driver.Cleanup(ctx, dir); err != nil {
		faults = append(faults, fmt.Errorf("end vm: %w", err))
	}
	if err := (&vfio.Manager{Host: devices, Dir: devicesDir(dir)}).Recover(ctx, dir); err != nil {
		faults = append(faults, err)
	}
	record, err := ReadRecord(dir)
	switch {
	case errdefs.IsNotFound(err): // killed before anything but the directory was made
	case err != nil:
		faults = append(faults, err)
	default:
		if err := network.Detach(ctx, record.NetNS); err != nil {
			faults = append(faults, err)
		}
	}
	if err := network.Remove(filepath.Join(dir, netNSName)); err != nil {
		faults = append(faults, err)
	}
	if err := errors.Join(faults...); err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove state directory: %w", err)
	}
	return nil
}
