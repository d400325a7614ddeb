package netns

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/integration/require"
)

// current names the namespace of the calling thread.
func current() (string, error) {
	return os.Readlink(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()))
}

func TestDo(t *testing.T) {
	require.Root(t)
	made, end := make(chan error), make(chan struct{})
	defer close(end)
	var path, inside string
	Thread(func() {
		err := unix.Unshare(unix.CLONE_NEWNET)
		path = fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), unix.Gettid())
		inside, _ = current()
		made <- err
		<-end
	})
	if err := <-made; err != nil {
		require.Missing(t, "needs network namespaces, got "+err.Error()+": run make test where root may make them")
	}
	outside, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			var got string
			err := Do(path, func() (err error) { got, err = current(); return err })
			if err != nil || got != inside {
				t.Errorf("in %s, want %s: %v", got, inside, err)
			}
			// No thread that was inside is left to run other goroutines.
			if got, err := current(); err != nil || got != outside {
				t.Errorf("afterwards in %s, want %s: %v", got, outside, err)
			}
		})
	}
	wg.Wait()
	if err := Do(path, func() error {
		links, err := net.Interfaces()
		if err == nil && len(links) == 0 {
			err = errors.New("no loopback")
		}
		return err
	}); err != nil {
		t.Error(err)
	}
}

func TestDoFaults(t *testing.T) {
	boom := errors.New("boom")
	if err := Do("", func() error { return boom }); !errors.Is(err, boom) {
		t.Errorf("got %v", err)
	}
	unreached := func() error { t.Error("called"); return nil }
	if err := Do("/proc/1/task/none/ns/net", unreached); !errdefs.IsNotFound(err) {
		t.Errorf("no such namespace: %v", err)
	}
	if err := Do("/dev/null", unreached); !errors.Is(err, unix.EINVAL) {
		t.Errorf("no namespace at all: %v", err)
	}
}

func TestThreadIsNeverTheFirst(t *testing.T) {
	for range 200 {
		tid := make(chan int)
		Thread(func() { tid <- unix.Gettid() })
		if <-tid == os.Getpid() {
			t.Fatal("ran on the process's first thread")
		}
	}
}

// TestNew makes a namespace that others find by its path and by its thread, and that nothing is left of.
func TestNew(t *testing.T) {
	require.Root(t)
	path := filepath.Join(t.TempDir(), "netns")
	n, err := New(path)
	if errors.Is(err, unix.EPERM) {
		require.Missing(t, "needs network namespaces, got "+err.Error()+": run make test where root may make them")
	}
	if err != nil {
		t.Fatal(err)
	}
	outside, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	inside := ""
	if err := Do(path, func() (err error) { inside, err = current(); return err }); err != nil || inside == outside {
		t.Errorf("in %s, outside %s: %v", inside, outside, err)
	}
	if byThread, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", n.TID())); err != nil || byThread != inside {
		t.Errorf("thread is in %s, path leads to %s: %v", byThread, inside, err)
	}
	if _, err := New(path); !errors.Is(err, os.ErrExist) {
		t.Errorf("a second one at the same path: %v", err)
	}
	for range 2 {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("path is left: %v", err)
	}
}

// TestRemove removes what a killed process has left, whole or half made.
func TestRemove(t *testing.T) {
	require.Root(t)
	dir := t.TempDir()
	half := filepath.Join(dir, "half")
	if err := os.WriteFile(half, nil, 0o400); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{half, filepath.Join(dir, "none")} {
		if err := Remove(path); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Lstat(half); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("path is left: %v", err)
	}
}
