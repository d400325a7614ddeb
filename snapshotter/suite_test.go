package snapshotter

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/coffer-project/coffer/integration/require"
	"github.com/coffer-project/coffer/snapshotter/server"
)

// TestSuite runs containerd's own suite on images that pass through.
func TestSuite(t *testing.T) {
	require.Root(t)
	testsuite.SnapshotterSuite(t, suiteName(t), func(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
		s, err := New(ctx, root)
		if err != nil {
			return nil, nil, err
		}
		return s, s.Close, nil
	})
}

// TestSuiteOverGRPC does the same as containerd uses us: as a proxy plugin, over our server's socket.
func TestSuiteOverGRPC(t *testing.T) {
	require.Root(t)
	testsuite.SnapshotterSuite(t, suiteName(t), newProxied)
}

// suiteName is the name under which the suite tests everything that this kernel's overlay can do. What it leaves out of the
// rest it tells.
func suiteName(t *testing.T) string {
	t.Helper()
	const parameter = "/sys/module/overlay/parameters/redirect_dir"
	value, err := os.ReadFile(parameter)
	if err == nil && strings.TrimSpace(string(value)) == "Y" {
		return "coffer"
	}
	t.Logf("left out of Rename: renaming a directory of a lower layer, which overlay refuses unless redirect_dir is on; %s is %q, %v",
		parameter, value, err)
	return "overlayfs"
}

func newProxied(ctx context.Context, root string) (_ snapshots.Snapshotter, _ func() error, retErr error) {
	s, err := New(ctx, root)
	if err != nil {
		return nil, nil, err
	}
	socket := filepath.Join(filepath.Dir(root), "sock")
	l, err := server.Listen(ctx, socket)
	if err != nil {
		return nil, nil, errors.Join(err, s.Close())
	}
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	served := make(chan error, 1)
	go func() { served <- server.Serve(serving, l, s) }()
	end := func() error {
		stop()
		return errors.Join(<-served, s.Close())
	}
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, nil, errors.Join(err, end())
	}
	proxied := proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "coffer")
	return proxied, func() error { return errors.Join(conn.Close(), end()) }, nil
}
