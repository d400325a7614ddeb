package sandbox

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	agentpb "github.com/coffer-project/coffer/proto/agent"
	typespb "github.com/coffer-project/coffer/proto/types"
	"github.com/coffer-project/coffer/shim/agent"
	"github.com/coffer-project/coffer/shim/bundle"
	"github.com/coffer-project/coffer/shim/network"
)

// setUpGuest makes the guest ready for containers: network first, because the rest may need it, then the sandbox, then
// the files that its containers share. It returns what the agent tells about itself.
func (p *Pod) setUpGuest(ctx context.Context, guest *agent.Client, attachment *network.Attachment) (*agentpb.AgentDetails, error) {
	details, err := guest.GetGuestDetails(ctx, &agentpb.GuestDetailsRequest{})
	if err != nil {
		return nil, fmt.Errorf("ask the guest for its details: %w", err)
	}
	if err := configureNetwork(ctx, guest, attachment); err != nil {
		return nil, fmt.Errorf("configure the guest's network: %w", err)
	}
	if _, err := guest.CreateSandbox(ctx, &agentpb.CreateSandboxRequest{
		SandboxId:    p.request.ID,
		Hostname:     p.request.Config.GetHostname(),
		Dns:          resolvLines(p.request.Config.GetDnsConfig()),
		SandboxPidns: sharesPIDs(p.request.Config),
		Storages:     []*agentpb.Storage{bundle.ShmStorage(0)},
	}); err != nil {
		return nil, fmt.Errorf("create the sandbox in the guest: %w", err)
	}
	p.undo.push("destroy sandbox in guest", func(ctx context.Context) error { return p.endGuest(ctx, guest) })
	if err := p.copyFiles(ctx, guest, attachment); err != nil {
		return nil, err
	}
	boot, err := guest.BootReport(ctx)
	if err != nil && !errdefs.IsNotImplemented(err) {
		log.G(ctx).WithError(err).WithField("sandbox", p.request.ID).Warn("guest gave no boot report")
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.noteScratch(details.GetAgentDetails().GetExtraFeatures())
	p.report.guest(details.GetAgentDetails(), boot)
	return details.GetAgentDetails(), nil
}

// endGuest ends the containers and the sandbox in the guest. Failures are logged and forgotten: the VM is ended next,
// and nothing in it outlives that.
func (p *Pod) endGuest(ctx context.Context, guest *agent.Client) error {
	select {
	case <-guest.Done():
		return nil
	default:
	}
	ctx, cancel := context.WithTimeout(ctx, guestStopBudget)
	defer cancel()
	if p.members != nil {
		p.members.End(ctx)
	}
	if _, err := guest.DestroySandbox(ctx, &agentpb.DestroySandboxRequest{}); err != nil {
		log.G(ctx).WithError(err).WithField("sandbox", p.ID()).Warn("guest did not end its sandbox, ending its vm")
	}
	return nil
}

func configureNetwork(ctx context.Context, guest *agent.Client, attachment *network.Attachment) error {
	for _, iface := range attachment.Interfaces {
		if _, err := guest.UpdateInterface(ctx, &agentpb.UpdateInterfaceRequest{Interface: interfaceMessage(iface)}); err != nil {
			return fmt.Errorf("interface %s: %w", iface.Name, err)
		}
	}
	if len(attachment.Routes) > 0 {
		routes := &agentpb.Routes{}
		for _, route := range attachment.Routes {
			routes.Routes = append(routes.Routes, routeMessage(route))
		}
		if _, err := guest.UpdateRoutes(ctx, &agentpb.UpdateRoutesRequest{Routes: routes}); err != nil {
			return fmt.Errorf("routes: %w", err)
		}
	}
	if len(attachment.Neighbours) > 0 {
		neighbours := &agentpb.ARPNeighbors{}
		for _, n := range attachment.Neighbours {
			neighbours.ARPNeighbors = append(neighbours.ARPNeighbors, &typespb.ARPNeighbor{
				ToIPAddress: &typespb.IPAddress{Family: family(n.Address), Address: n.Address.String()},
				Device:      n.Device, Lladdr: n.MAC.String(), State: int32(n.State), Flags: int32(n.Flags),
			})
		}
		if _, err := guest.AddARPNeighbors(ctx, &agentpb.AddARPNeighborsRequest{Neighbors: neighbours}); err != nil {
			return fmt.Errorf("neighbours: %w", err)
		}
	}
	return nil
}

func interfaceMessage(iface network.Interface) *typespb.Interface {
	message := &typespb.Interface{
		Device: iface.Name, Name: iface.Name, HwAddr: iface.MAC.String(), Mtu: uint64(iface.MTU),
	}
	for _, address := range iface.Addresses {
		message.IPAddresses = append(message.IPAddresses, &typespb.IPAddress{
			Family: family(address.Addr()), Address: address.Addr().String(), Mask: strconv.Itoa(address.Bits()),
		})
	}
	return message
}

// routeMessage leaves the destination of a default route empty, which is how the agent protocol says it.
func routeMessage(route network.Route) *typespb.Route {
	message := &typespb.Route{
		Device: route.Device, Scope: uint32(route.Scope), Family: family(route.Destination.Addr()),
		Flags: route.Flags, Mtu: route.MTU,
	}
	if route.Destination.Bits() > 0 {
		message.Dest = route.Destination.String()
	}
	if route.Gateway.IsValid() {
		message.Gateway = route.Gateway.String()
	}
	if route.Source.IsValid() {
		message.Source = route.Source.String()
	}
	return message
}

func family(address netip.Addr) typespb.IPFamily {
	if address.Is6() {
		return typespb.IPFamily_v6
	}
	return typespb.IPFamily_v4
}
