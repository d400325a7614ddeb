package integration

import (
	"sync"
	"testing"

	"github.com/coffer-project/coffer/integration/harness"
	"github.com/coffer-project/coffer/integration/registrytest"
)

// TestPull pulls images in guests from registries and with keys of brokers that are sound, or that fail in every way that
// we know. It uses one pod for each group of cases. Where cases wait, others of their pod go on.
func TestPull(t *testing.T) {
	t.Parallel()
	node := sharedNode(t)
	t.Run("pods", func(t *testing.T) {
		for _, group := range []struct {
			name string
			run  func(*testing.T, *harness.Node)
		}{
			{"broker", pullBrokerFaults}, {"small", pullSmallPod}, {"faults", pullFaults}, {"images", pullImages},
		} {
			t.Run(group.name, func(t *testing.T) {
				t.Parallel()
				group.run(t, node)
			})
		}
	})
}

// pullFaults lets registries fail and images be wrong in one pod: at the same time, because most of what registries do wrong
// is to keep the guest waiting.
func pullFaults(t *testing.T, node *harness.Node) {
	broker := startBroker(t, node)
	sound := openShop(t, node)
	cases := newRegistryCases(t, node, broker)
	hosts := []string{sound.host()}
	for _, c := range cases {
		if !c.fault.unmarked {
			hosts = append(hosts, c.shop.host())
		}
	}
	pod := runPullPod(t, node, "faults", harness.Guest{
		BrokerURL: broker.URL, PlainRegistries: hosts, PullProgress: "10s", ImagePolicy: signaturePolicy(sound.host()), Policy: signerPolicy(),
	}, nil)
	base := busyboxLayer(t, node)
	keep(t, pod, sound.put("base", registrytest.NewImage([]registrytest.Layer{base}, nil, nil)))
	for _, c := range cases {
		pull(t, pod, c.reference)
	}

	var waiting sync.WaitGroup
	for name, c := range cases {
		waiting.Go(func() { c.run(t, node, pod, name) })
	}
	t.Run("content", func(t *testing.T) { contentFaultsIn(t, node, pod, sound, broker, base) })
	waiting.Wait()
	t.Run("registry", func(t *testing.T) {
		for name, c := range cases {
			t.Run(name, func(t *testing.T) { c.testOutcome(t, name) })
		}
	})
}
