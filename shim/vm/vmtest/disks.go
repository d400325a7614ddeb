package vmtest

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/shim/vm"
)

// testDisks plugs disks into a running VM and takes them out again.
func testDisks(t *testing.T, h Harness) {
	instance, _ := create(t, h)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	disk := vm.HotDisk{Serial: "volume-a", File: diskFile(t)}
	if _, err := instance.AttachDisk(ctx, disk); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("attach before the start: %v", err)
	}
	if err := instance.Start(ctx); err != nil {
		t.Fatal(err)
	}
	// A guest that does not run yet could not let go of a disk.
	if err := echo(dial(t, instance, h.EchoPort), 16); err != nil {
		t.Fatal(err)
	}
	first, err := instance.AttachDisk(ctx, disk)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := instance.AttachDisk(ctx, disk); !errdefs.IsAlreadyExists(err) {
		t.Errorf("attach a serial twice: %v", err)
	}
	readable, err := os.Open(disk.File.Name())
	if err != nil {
		t.Fatal(err)
	}
	defer readable.Close()
	second, err := instance.AttachDisk(ctx, vm.HotDisk{Serial: "volume-b", File: readable, ReadOnly: true})
	if err != nil || second == first {
		t.Errorf("the second disk is at %s, %v; the first one at %s", second, err, first)
	}
	for _, serial := range []string{"volume-a", "volume-a", "never-there"} {
		if err := instance.DetachDisk(ctx, serial); err != nil {
			t.Errorf("detach %s: %v", serial, err)
		}
	}
	if _, err := instance.AttachDisk(ctx, disk); err != nil {
		t.Errorf("attach again: %v", err)
	}
	if err := instance.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	if err := instance.DetachDisk(ctx, "volume-a"); err != nil {
		t.Errorf("detach after the end: %v", err)
	}
	if _, err := instance.AttachDisk(ctx, disk); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("attach after the end: %v", err)
	}
}

// diskFile is a regular file, which stands for a block device where the machine has none to spare.
func diskFile(t *testing.T) *os.File {
	t.Helper()
	file, err := os.Create(filepath.Join(t.TempDir(), "disk.img"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	if err := file.Truncate(1 << 20); err != nil {
		t.Fatal(err)
	}
	return file
}
