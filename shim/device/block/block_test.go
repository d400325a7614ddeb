package block

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/shim/vm"
	"github.com/coffer-project/coffer/shim/vm/vmtest"
)

// machine is a running VM without a guest.
func machine(t *testing.T) (*vmtest.Driver, *vmtest.Instance) {
	t.Helper()
	driver := new(vmtest.Driver)
	instance, err := driver.New(t.Context(), vm.Config{ID: "pod"})
	if err != nil {
		t.Fatal(err)
	}
	if err := instance.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return driver, instance.(*vmtest.Instance)
}

// files opens an empty file for every device, and counts what is open.
func files(t *testing.T) opener {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return func(Device) (*os.File, error) { return os.Open(path) }
}

func mustAdd(t *testing.T, claim *Claim) string {
	t.Helper()
	address, err := claim.Add(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return address
}

func wantDisks(t *testing.T, instance *vmtest.Instance, want ...string) {
	t.Helper()
	if got := instance.Disks(); !slices.Equal(got, want) {
		t.Errorf("the VM has disks %v, want %v", got, want)
	}
}

func TestShare(t *testing.T) {
	_, instance := machine(t)
	m := newManager(instance, files(t))
	writable, readable := Device{Major: 7, Minor: 1}, Device{Major: 7, Minor: 1, ReadOnly: true}
	first, second, third := m.Reserve(writable), m.Reserve(writable), m.Reserve(readable)
	wantDisks(t, instance)
	if a, b := mustAdd(t, first), mustAdd(t, second); a != b {
		t.Errorf("one device is at %s and at %s", a, b)
	}
	if a, b := mustAdd(t, first), mustAdd(t, third); a == b {
		t.Errorf("a device that may be written is the one that may not, at %s", a)
	}
	wantDisks(t, instance, "b7-1-ro", "b7-1-rw")
	for range 2 { // the second time means nothing
		if err := first.Remove(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	wantDisks(t, instance, "b7-1-ro", "b7-1-rw")
	if err := RemoveAll(t.Context(), []*Claim{second, third}); err != nil {
		t.Fatal(err)
	}
	wantDisks(t, instance)
	if len(m.devices) != 0 {
		t.Errorf("%d devices are remembered", len(m.devices))
	}
}

func TestAddFails(t *testing.T) {
	errOpen := errors.New("open")
	for name, tc := range map[string]struct {
		open    opener
		attach  error
		wantErr error
	}{
		"open":   {func(Device) (*os.File, error) { return nil, errOpen }, nil, errOpen},
		"attach": {files(t), errdefs.ErrResourceExhausted, errdefs.ErrResourceExhausted},
	} {
		t.Run(name, func(t *testing.T) {
			driver, instance := machine(t)
			driver.AttachErr = tc.attach
			m := newManager(instance, tc.open)
			claim := m.Reserve(Device{Major: 7})
			if _, err := claim.Add(t.Context()); !errors.Is(err, tc.wantErr) {
				t.Errorf("got %v, want %v", err, tc.wantErr)
			}
			// Once the cause is gone, it can be tried again.
			driver.AttachErr, m.open = nil, files(t)
			mustAdd(t, claim)
			if err := claim.Remove(t.Context()); err != nil {
				t.Error(err)
			}
			wantDisks(t, instance)
		})
	}
}

func TestRemoveFails(t *testing.T) {
	driver, instance := machine(t)
	m := newManager(instance, files(t))
	claim := m.Reserve(Device{Major: 7})
	mustAdd(t, claim)
	driver.DetachErr = context.DeadlineExceeded
	if err := claim.Remove(t.Context()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("remove: %v", err)
	}
	next := m.Reserve(Device{Major: 7})
	if _, err := next.Add(t.Context()); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("add of a device that the guest holds on to: %v", err)
	}
	driver.DetachErr = nil
	if err := claim.Remove(t.Context()); err != nil {
		t.Errorf("remove again: %v", err)
	}
	wantDisks(t, instance)
	mustAdd(t, next)
	wantDisks(t, instance, "b7-0-rw")
	if err := next.Remove(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestOpenNamed(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "plain"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		uevent  string
		wantErr error
	}{
		"no device":    {"", errdefs.ErrNotFound},
		"no name":      {"MAJOR=7\n", errdefs.ErrNotFound},
		"outside /dev": {"DEVNAME=../etc/passwd\n", errdefs.ErrNotFound},
		"no node":      {"DEVNAME=loop7\n", os.ErrNotExist},
		"other file":   {"DEVNAME=plain\n", errdefs.ErrFailedPrecondition},
	} {
		t.Run(name, func(t *testing.T) {
			sysfs := t.TempDir()
			if tc.uevent != "" {
				if err := os.WriteFile(filepath.Join(sysfs, "uevent"), []byte(tc.uevent), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := openNamed(Device{Major: 7}, sysfs, dir); !errors.Is(err, tc.wantErr) {
				t.Errorf("got %v, want %v", err, tc.wantErr)
			}
		})
	}
}
