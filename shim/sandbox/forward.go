package sandbox

import (
	"context"
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/coffer-project/coffer/proto/forward"
	"github.com/coffer-project/coffer/shim/vm"
)

// forwardPorts makes servers on the pod's loopback reachable for port-forward. A pod that cannot have it runs all the
// same, and its report says why: nothing else depends on it.
func (p *Pod) forwardPorts(ctx context.Context, instance vm.Instance, features []string) {
	if p.request.NetNS == "" {
		return // a pod without a network has no loopback on the host
	}
	err := p.tryForwardPorts(ctx, instance, features)
	if err == nil {
		return
	}
	log.G(ctx).WithError(err).WithField("sandbox", p.request.ID).Warn("pod runs without port-forward")
	p.mu.Lock()
	defer p.mu.Unlock()
	p.report.degraded = append(p.report.degraded, "port-forward: "+err.Error())
}

func (p *Pod) tryForwardPorts(ctx context.Context, instance vm.Instance, features []string) error {
	if !slices.Contains(features, forward.Feature) {
		return fmt.Errorf("the guest image does not offer it (agent feature %s): %w", forward.Feature, errdefs.ErrNotImplemented)
	}
	forwarder, err := p.platform.Forward(ctx, p.request.NetNS, instance.Dial)
	if err != nil {
		return err
	}
	p.undo.push("end port-forward", func(context.Context) error { return forwarder.Close() })
	return nil
}
