package integration

import (
	"context"
	"testing"

	"github.com/coffer-project/coffer/integration/harness"
)

// podCycles is how many pods must have come and gone.
const podCycles = 20

// TestPodCycles runs many pods one after the other, which must leave the node as it was.
func TestPodCycles(t *testing.T) {
	node := ownNode(t, harness.Options{})
	cycle := func() {
		ctx, cancel := context.WithTimeout(t.Context(), lifeBudget)
		defer cancel()
		pod, err := node.CRI.RunPod(ctx, "coffer", node.CRI.PodConfig("cycle", nil))
		if err != nil {
			t.Fatal(err)
		}
		if err := pod.Remove(ctx); err != nil {
			t.Fatal(err)
		}
	}
	// The first pods leave what is meant to stay: databases, the probe's outcome, connections.
	for range 2 {
		cycle()
	}
	if err := node.Leftovers(); err != nil {
		t.Fatal(err)
	}
	before, err := node.Usage()
	if err != nil {
		t.Fatal(err)
	}
	for range podCycles {
		cycle()
	}
	ctx, cancel := context.WithTimeout(t.Context(), lifeBudget)
	defer cancel()
	err = harness.Eventually(ctx, func(context.Context) error {
		after, err := node.Usage()
		if err != nil {
			return err
		}
		return after.Grown(before)
	})
	if err != nil {
		t.Error(err)
	}
	for kind, list := range before {
		t.Logf("%s: %d", kind, len(list))
	}
}
