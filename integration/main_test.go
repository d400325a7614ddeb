// Package integration tests Coffer's behaviour on a whole node: real containerd, registry, key broker and VMs.
package integration

import (
	"context"
	"fmt"
	"os"
	"sync"
	"testing"

	"github.com/coffer-project/coffer/integration/harness"
	"github.com/coffer-project/coffer/integration/require"
)

// lanes are nodes for tests that leave their node as they have found it; starting one costs seconds. A test has its node to
// itself, so that it can tell what is left behind. There come to be as many as there are tests side by side.
var lanes struct {
	sync.Mutex
	all, free []*lane
}

// lane is such a node, and what it held when its first test had ended. That leaves what is meant to stay.
type lane struct {
	node   *harness.Node
	before harness.Usage
}

func TestMain(m *testing.M) {
	code := m.Run()
	for _, l := range lanes.all {
		if err := l.node.Close(); err != nil {
			fmt.Fprintln(os.Stderr, "close a shared node:", err)
			code = max(code, 1)
		}
	}
	os.Exit(code)
}

// sharedNode lends the test a node until its end, when nothing may be left on it but images.
func sharedNode(t *testing.T) *harness.Node {
	t.Helper()
	l := freeLane()
	if l == nil {
		l = &lane{node: startNode(t, harness.Options{})}
		lanes.Lock()
		lanes.all = append(lanes.all, l)
		lanes.Unlock()
	}
	t.Cleanup(func() {
		if err := l.clean(); err != nil {
			t.Error("at the end of the test:", err)
		}
		if t.Failed() {
			return // no other test shall be blamed for what this one may have left
		}
		lanes.Lock()
		defer lanes.Unlock()
		lanes.free = append(lanes.free, l)
	})
	return l.node
}

func freeLane() *lane {
	lanes.Lock()
	defer lanes.Unlock()
	last := len(lanes.free) - 1
	if last < 0 {
		return nil
	}
	l := lanes.free[last]
	lanes.free = lanes.free[:last]
	return l
}

// clean fails when a test has left something, or the node holds more than it did.
func (l *lane) clean() error {
	if err := l.node.Leftovers(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), harness.CleanUpTime)
	defer cancel()
	return harness.Eventually(ctx, func(context.Context) error {
		now, err := l.node.Usage()
		if err != nil {
			return err
		}
		delete(now, "files") // of images
		if l.before == nil {
			l.before = now
		}
		return now.Grown(l.before)
	})
}

// ownNode starts a node for one test, which may break it.
func ownNode(t *testing.T, options harness.Options) *harness.Node {
	t.Helper()
	node := startNode(t, options)
	t.Cleanup(func() {
		if err := node.Close(); err != nil {
			t.Error("close the node:", err)
		}
	})
	return node
}

func startNode(t *testing.T, options harness.Options) *harness.Node {
	t.Helper()
	requireNode(t)
	ctx, cancel := context.WithTimeout(t.Context(), lifeBudget)
	defer cancel()
	node, err := harness.Start(ctx, options)
	if err != nil {
		t.Fatal(err)
	}
	return node
}

// requireNode skips unless this machine can run a whole node: root, QEMU, containerd, a registry, Coffer's own binaries.
func requireNode(t *testing.T) {
	t.Helper()
	require.Root(t)
	if _, err := harness.FindTools(); err != nil {
		require.Missing(t, err.Error())
	}
}
