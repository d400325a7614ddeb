package snapshotter

import (
	"context"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"

	"github.com/coffer-project/coffer/integration/require"
)

// TestSuite runs containerd's own suite on images that pass through. It runs under the name "overlayfs": the suite then
// leaves out the one thing that this kernel file system cannot do unless redirect_dir is on, renaming a directory of a
// lower layer.
func TestSuite(t *testing.T) {
	require.Root(t)
	testsuite.SnapshotterSuite(t, "overlayfs", func(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
		s, err := New(ctx, root)
		if err != nil {
			return nil, nil, err
		}
		return s, s.Close, nil
	})
}
