// Package integration tests Coffer's behaviour on a whole node: real containerd, registry, key broker and VMs.
package integration

import (
	"context"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/coffer-project/coffer/integration/harness"
	"github.com/coffer-project/coffer/integration/require"
)

// shared is the node that most tests use: starting one costs seconds, and pods on it do not disturb each other.
var shared struct {
	once sync.Once
	node *harness.Node
	err  error
}

func TestMain(m *testing.M) {
	code := m.Run()
	if shared.node != nil {
		if err := shared.node.Close(); err != nil {
			fmt.Fprintln(os.Stderr, "close the shared node:", err)
			code = max(code, 1)
		}
	}
	os.Exit(code)
}

// sharedNode starts the shared node when the first test asks for it.
func sharedNode(t *testing.T) *harness.Node {
	t.Helper()
	requireNode(t)
	shared.once.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		shared.node, shared.err = harness.Start(ctx, harness.Options{})
	})
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.node
}

// requireNode skips unless this machine can run a whole node: root, QEMU, containerd, a registry, Coffer's own binaries.
func requireNode(t *testing.T) {
	t.Helper()
	require.Root(t)
	if _, err := harness.FindTools(); err != nil {
		require.Missing(t, err.Error())
	}
}
