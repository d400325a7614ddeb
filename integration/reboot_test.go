package integration

import (
	"context"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coffer-project/coffer/integration/harness"
)

// testPowerCut cuts the node's power under a running pod and starts the node again on the same disk. It returns that pod, which
// is dead, and a new one.
func testPowerCut(t *testing.T, node *harness.Node) (old, fresh *lab) {
	t.Helper()
	image := encryptedImage(t, node)
	old = newLab(t, node, "coffer", image, nil)
	c := old.start(t, nil, "/bin/sh", "-c", "echo ready; sleep 100000")
	old.says(t, c, "ready")
	if err := node.PowerCut(old.ctx(t)); err != nil {
		t.Fatal(err)
	}
	if err := node.StartSnapshotter(old.ctx(t)); err != nil {
		t.Fatal(err)
	}
	if err := node.StartContainerd(old.ctx(t)); err != nil {
		t.Fatal(err)
	}
	err := harness.Eventually(old.ctx(t), func(ctx context.Context) error {
		_, err := node.CRI.Runtime.Version(ctx, &runtime.VersionRequest{})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}

	t.Run("after a power cut the old pod is not ready", func(t *testing.T) {
		awaitNotReady(t, old)
		// Nobody saw how it ended.
		if status := old.wait(t, c); status.ExitCode != 255 {
			t.Errorf("the container's exit status is %d (%s), want 255", status.ExitCode, status.Reason)
		}
	})
	fresh = &lab{node: node, image: image} // which the node still has
	t.Run("after a power cut a new pod runs", func(t *testing.T) {
		annotations, err := node.PodAnnotations(harness.Guest{})
		if err != nil {
			t.Fatal(err)
		}
		if fresh.pod, err = node.CRI.RunPod(fresh.ctx(t), "coffer", node.CRI.PodConfig("fresh", annotations)); err != nil {
			t.Fatal(err)
		}
		if got := fresh.sh(t, fresh.sleeper(t, nil), "echo hello"); got != "hello" {
			t.Errorf("a container says %q", got)
		}
	})
	if t.Failed() {
		t.FailNow()
	}
	return old, fresh
}
