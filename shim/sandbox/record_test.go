package sandbox

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/shim/device/vfio"
	"github.com/coffer-project/coffer/shim/network"
	"github.com/coffer-project/coffer/shim/vm/vmtest"
)

// detacher is a network of which only the part for a later process is used.
type detacher struct {
	Network
	err      error
	detached []string
	removed  []string
}

func (d *detacher) Attach(context.Context, string) (*network.Attachment, error) {
	return nil, errdefs.ErrNotImplemented
}

func (d *detacher) Detach(_ context.Context, netns string) error {
	d.detached = append(d.detached, netns)
	return d.err
}

func (d *detacher) Remove(path string) error {
	d.removed = append(d.removed, path)
	return nil
}

func stateDir(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "pod")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestReap(t *testing.T) {
	dir := stateDir(t)
	record := &Record{ID: "p", Namespace: "n", Bundle: "/b", NetNS: "/run/netns/p", CreatedAt: time.Now().UTC()}
	if err := record.write(dir); err != nil {
		t.Fatal(err)
	}
	driver, net := &vmtest.Driver{}, &detacher{err: errors.New("busy")}
	if err := Reap(t.Context(), driver, net, vfio.Host{}, dir); !errors.Is(err, net.err) {
		t.Errorf("error is %v, want %v", err, net.err)
	}
	if got, err := ReadRecord(dir); err != nil || *got != *record {
		t.Errorf("record after a failed attempt is %+v, %v", got, err)
	}
	net.err = nil
	for range 2 {
		if err := Reap(t.Context(), driver, net, vfio.Host{}, dir); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("state directory is left: %v", err)
	}
	if len(net.detached) != 2 || net.detached[1] != record.NetNS {
		t.Errorf("detached %q", net.detached)
	}
	if len(net.removed) != 2 || net.removed[0] != filepath.Join(dir, netNSName) {
		t.Errorf("removed namespaces %q", net.removed)
	}
	if len(driver.Cleaned()) != 2 {
		t.Errorf("driver cleaned %q", driver.Cleaned())
	}
}

// TestReapEarlyDeath is a shim that was killed between making the directory and writing the record.
func TestReapEarlyDeath(t *testing.T) {
	dir := stateDir(t)
	if err := os.WriteFile(filepath.Join(dir, ".half-written"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Reap(t.Context(), &vmtest.Driver{}, &detacher{}, vfio.Host{}, dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("state directory is left: %v", err)
	}
}

func TestReapDamagedRecord(t *testing.T) {
	dir := stateDir(t)
	if err := os.WriteFile(filepath.Join(dir, recordName), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	driver := &vmtest.Driver{}
	if err := Reap(t.Context(), driver, &detacher{}, vfio.Host{}, dir); err == nil {
		t.Error("a damaged record went unnoticed")
	}
	if len(driver.Cleaned()) != 1 {
		t.Error("the vm was not ended although its own record may be whole")
	}
}

// TestOrphaned: whoever asks disturbs neither another one who asks nor the shim that is just starting.
func TestOrphaned(t *testing.T) {
	dir := stateDir(t)
	asking, err := lock(dir, unix.LOCK_SH|unix.LOCK_NB)
	if err != nil {
		t.Fatal(err)
	}
	if orphan, err := Orphaned(dir); err != nil || !orphan {
		t.Errorf("while another one asks: %v, %v", orphan, err)
	}
	type held struct {
		release func() error
		err     error
	}
	made := make(chan held)
	go func() {
		release, err := hold(dir)
		made <- held{release, err}
	}()
	if err := asking(); err != nil {
		t.Fatal(err)
	}
	shim := <-made
	if shim.err != nil {
		t.Fatal(shim.err)
	}
	if orphan, err := Orphaned(dir); err != nil || orphan {
		t.Errorf("with a shim: %v, %v", orphan, err)
	}
	if err := shim.release(); err != nil {
		t.Fatal(err)
	}
	if orphan, err := Orphaned(dir); err != nil || !orphan {
		t.Errorf("after the shim: %v, %v", orphan, err)
	}
	if _, err := Orphaned(filepath.Join(dir, "none")); !errdefs.IsNotFound(err) {
		t.Errorf("without a directory: %v", err)
	}
}

func TestStateDirOf(t *testing.T) {
	a, b := stateDirOf("/run/coffer", "/run/a/k8s.io/x"), stateDirOf("/run/coffer", "/run/b/k8s.io/x")
	if a == b {
		t.Error("two containerd instances share a state directory")
	}
	// A unix socket's path has 107 bytes at most, and drivers put sockets here.
	if len(a) > 40 {
		t.Errorf("%s is too long", a)
	}
}
