package integration

import (
	"context"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coffer-project/coffer/integration/harness"
)

// TestReboot cuts the node's power under a running pod and starts the node again on the same disk.
func TestReboot(t *testing.T) {
	node := ownNode(t, harness.Options{})
	image := encryptedImage(t, node)
	old := newLab(t, node, "coffer", image, nil)
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

	t.Run("the old pod is not ready", func(t *testing.T) {
		awaitNotReady(t, old)
		// Nobody saw how it ended.
		if status := old.wait(t, c); status.ExitCode != 255 {
			t.Errorf("the container's exit status is %d (%s), want 255", status.ExitCode, status.Reason)
		}
	})
	t.Run("a new pod runs", func(t *testing.T) {
		annotations, err := node.PodAnnotations(harness.Guest{})
		if err != nil {
			t.Fatal(err)
		}
		fresh := &lab{node: node, image: image} // which the node still has
		config := node.CRI.PodConfig("fresh", annotations)
		if fresh.pod, err = node.CRI.RunPod(fresh.ctx(t), "coffer", config); err != nil {
			t.Fatal(err)
		}
		defer fresh.remove(t)
		if got := fresh.sh(t, fresh.sleeper(t, nil), "echo hello"); got != "hello" {
			t.Errorf("a container says %q", got)
		}
	})
	t.Run("the old pod is removed", func(t *testing.T) {
		old.remove(t)
		checkGone(t, node)
	})
}
