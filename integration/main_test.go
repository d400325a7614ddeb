// Package integration tests Coffer's behaviour on a whole node: real containerd, registry, key broker and VMs.
package integration

import (
	"context"
	"fmt"
	"os"
	"sync"
	"testing"

	"github.com/coffer-project/coffer/integration/forgedsnp"
	"github.com/coffer-project/coffer/integration/harness"
	"github.com/coffer-project/coffer/integration/require"
)

// lanes are nodes for tests that leave their node as they have found it; starting one costs seconds. A test has its node to
// itself, so that it can tell what is left behind. There come to be as many as there are tests side by side.
var lanes struct {
	sync.Mutex
	all, free []*harness.Node
}

func TestMain(m *testing.M) {
	forgedsnp.Intercept()
	code := m.Run()
	for _, node := range lanes.all {
		if err := node.Close(); err != nil {
			fmt.Fprintln(os.Stderr, "close a shared node:", err)
			code = max(code, 1)
		}
	}
	os.Exit(code)
}

// sharedNode lends the test a node until its end, when nothing may be left on it but images.
func sharedNode(t *testing.T) *harness.Node {
	t.Helper()
	node := freeNode()
	if node == nil {
		node = startNode(t, harness.Options{Handlers: map[string]string{debugHandler: debugConfig}})
		lanes.Lock()
		lanes.all = append(lanes.all, node)
		lanes.Unlock()
	}
	t.Cleanup(func() {
		if err := node.Leftovers(); err != nil {
			t.Error("at the end of the test:", err)
		}
		if t.Failed() {
			return // no other test shall be blamed for what this one may have left
		}
		lanes.Lock()
		defer lanes.Unlock()
		lanes.free = append(lanes.free, node)
	})
	return node
}

func freeNode() *harness.Node {
	lanes.Lock()
	defer lanes.Unlock()
	last := len(lanes.free) - 1
	if last < 0 {
		return nil
	}
	node := lanes.free[last]
	lanes.free = lanes.free[:last]
	return node
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
