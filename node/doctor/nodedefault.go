package doctor

import (
	"context"
	"fmt"
)

// checkDefault looks at what happens to pulls that name no handler, as kubelet's do unless its gate
// RuntimeClassInImageCriApi is on: they go to containerd's default snapshotter.
func checkDefault(ctx context.Context, x *Examination) []Finding {
	if x.containerd == nil {
		return x.unread()
	}
	used, second := x.containerd.Plugins.Images.Snapshotter, x.snapshotter.NodeDefault.Address
	ours, _, _ := x.proxy()
	named := x.second()
	const cure = "put contrib/containerd/coffer-node-default.toml into containerd's imports, set node_default.address, restart both"
	switch {
	case second != "" && named == "":
		return fail("node-default mode is on, and no proxy plugin of containerd has the address "+second, cure)
	case second != "" && used != named:
		return warn(fmt.Sprintf("node-default mode is on, and containerd's default snapshotter is %s", used), cure+"; or empty node_default.address")
	case second != "":
		if err := x.Probes.Snapshotter(ctx, second); err != nil {
			return fail(fmt.Sprintf("containerd's default snapshotter does not answer on %s: %s", second, oneLine(err)), "systemctl restart coffer-snapshotter")
		}
		return ok("node-default mode: " + named + " decides image by image")
	case used == ours:
		return ok("every image is left to guests, except images.passthrough")
	case x.containerd.Proxies[used].Address != "" && x.Probes.Snapshotter(ctx, x.containerd.Proxies[used].Address) != nil:
		return fail(fmt.Sprintf("nobody answers for containerd's default snapshotter %s: no pod of any runtime can be created", used), "start it; "+cure)
	}
	return notApplicable(fmt.Sprintf("pulls that name no handler are unpacked on this host by %s: kubelet needs its gate RuntimeClassInImageCriApi, or this node its node-default mode", used))
}

// checkContainerdSocket is about the snapshotter's own way to containerd.
func checkContainerdSocket(_ context.Context, x *Examination) []Finding {
	address := x.snapshotter.ContainerdAddress
	if _, err := x.Host.Stat(address); err != nil {
		return warn("containerd_address of the snapshotter: "+oneLine(err), "start containerd, or correct containerd_address (k3s and RKE2: /run/k3s/containerd/containerd.sock)")
	}
	return ok("the snapshotter asks containerd at " + address)
}
