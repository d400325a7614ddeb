// Package netnstest makes network namespaces for tests.
package netnstest

import (
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/shim/netns"
)

// New makes a network namespace that lives until the test ends, and returns its path. It needs root, but no mount: a
// thread that stays in it keeps it alive.
func New(tb testing.TB) string {
	tb.Helper()
	path, end := "", make(chan struct{})
	tb.Cleanup(func() { close(end) })
	made := make(chan error)
	netns.Thread(func() {
		err := unix.Unshare(unix.CLONE_NEWNET)
		path = fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), unix.Gettid())
		made <- err
		<-end
	})
	if err := <-made; err != nil {
		tb.Fatalf("make a network namespace: %v: run make test where root may do that", err)
	}
	return path
}
