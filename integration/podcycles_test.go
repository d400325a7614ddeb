package integration

import (
	"context"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coffer-project/coffer/integration/harness"
)

// podCycles is how many pods must have come and gone.
const podCycles = 20

// podRow makes pods that come and go, and finds out what they leave on their node.
type podRow struct {
	node   *harness.Node
	before harness.Usage
	gone   int
}

// newPodRow makes the first two, one with a container, which leave what is meant to stay: databases, the probe's outcome, the
// broker's record, connections.
func newPodRow(t *testing.T, node *harness.Node) *podRow {
	t.Helper()
	p := &podRow{node: node}
	l := newLab(t, node, "coffer", encryptedImage(t, node), nil)
	l.sleeper(t, nil)
	l.remove(t)
	p.removeImage(t, l.image)
	p.cycle(t)
	checkGone(t, node)
	var err error
	if p.before, err = node.Usage(); err != nil {
		t.Fatal(err)
	}
	p.gone = 0
	return p
}

// cycle makes a pod and removes it.
func (p *podRow) cycle(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), lifeBudget)
	defer cancel()
	pod, err := p.node.CRI.RunPod(ctx, "coffer", p.node.CRI.PodConfig("cycle", nil))
	if err != nil {
		t.Fatal(err)
	}
	if err := pod.Remove(ctx); err != nil {
		t.Fatal(err)
	}
	p.gone++
}

// nothingGrows makes as many more as are missing, after which the node must be as it was.
func (p *podRow) nothingGrows(t *testing.T) {
	for p.gone < podCycles {
		p.cycle(t)
	}
	ctx, cancel := context.WithTimeout(t.Context(), lifeBudget)
	defer cancel()
	err := harness.Eventually(ctx, func(context.Context) error {
		after, err := p.node.Usage()
		if err != nil {
			return err
		}
		return after.Grown(p.before)
	})
	if err != nil {
		t.Errorf("after %d pods: %v", p.gone, err)
	}
	for kind, list := range p.before {
		t.Logf("%s: %d", kind, len(list))
	}
}

// removeImage takes an image from the node.
func (p *podRow) removeImage(t *testing.T, image string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), lifeBudget)
	defer cancel()
	if _, err := p.node.CRI.Images.RemoveImage(ctx, &runtime.RemoveImageRequest{Image: &runtime.ImageSpec{Image: image}}); err != nil {
		t.Fatal(err)
	}
}
