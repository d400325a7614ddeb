package integration

import (
	"testing"

	"github.com/coffer-project/coffer/integration/harness"
)

// TestPull pulls images in guests from registries and with keys of brokers that are sound, or that fail in every way that
// we know. It uses one pod for each group of cases, two at a time on two processors: much of their time is waiting.
func TestPull(t *testing.T) {
	node := sharedNode(t)
	t.Run("pods", func(t *testing.T) {
		for _, group := range []struct {
			name string
			run  func(*testing.T, *harness.Node)
		}{
			{"broker", pullBrokerFaults}, {"registry", pullRegistryFaults}, {"small", pullSmallPod}, {"content", pullContentFaults}, {"images", pullImages},
		} {
			t.Run(group.name, func(t *testing.T) {
				t.Parallel()
				group.run(t, node)
			})
		}
	})
	if err := node.Leftovers(); err != nil {
		t.Error(err)
	}
}
