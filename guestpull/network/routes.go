package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	typespb "github.com/coffer-project/coffer/proto/types"
)

// UpdateRoutes makes the wanted routes the only ones, besides those that the kernel itself made for the cards'
// addresses. All are checked before the first is changed. It returns the routes that there are then.
func (n *Network) UpdateRoutes(ctx context.Context, wanted []*typespb.Route) ([]*typespb.Route, error) {
	if len(wanted) > maxRoutes {
		return nil, invalid("set %d routes", len(wanted))
	}
	checked := make([]route, 0, len(wanted))
	for _, w := range wanted {
		r, err := checkRoute(w)
		if err != nil {
			return nil, fmt.Errorf("set route: %w", err)
		}
		checked = append(checked, r)
	}
	// A gateway must be reachable when its route is added: routes on the link come first.
	slices.SortStableFunc(checked, func(a, b route) int { return rank(a) - rank(b) })

	n.mu.Lock()
	defer n.mu.Unlock()
	set := make([]netlink.Route, 0, len(checked))
	for _, r := range checked {
		entry, err := n.build(r)
		if err == nil {
			err = n.kernel.RouteReplace(&entry)
		}
		if err != nil {
			return nil, fmt.Errorf("set route to %s by card %s: %w", r.destination, r.device, err)
		}
		set = append(set, entry)
	}
	if err := n.removeOthers(set); err != nil {
		return nil, err
	}
	return n.ListRoutes(ctx)
}

func rank(r route) int {
	if r.gateway.IsValid() {
		return 1
	}
	return 0
}

// build makes the kernel's form of a route.
func (n *Network) build(r route) (netlink.Route, error) {
	link, err := n.byName(r.device)
	if err != nil {
		return netlink.Route{}, err
	}
	entry := netlink.Route{
		LinkIndex: link.Attrs().Index, Dst: toNet(r.destination), Scope: netlink.Scope(r.scope), MTU: r.mtu,
		Protocol: unix.RTPROT_STATIC, Table: unix.RT_TABLE_MAIN, Family: family(r.destination.Addr()),
	}
	if r.gateway.IsValid() {
		entry.Gw = r.gateway.AsSlice()
	}
	if r.source.IsValid() {
		entry.Src = r.source.AsSlice()
	}
	if r.onLink {
		entry.SetFlag(netlink.FLAG_ONLINK)
	}
	return entry, nil
}

// removeOthers removes the routes of the main table that are neither in set nor the kernel's own.
func (n *Network) removeOthers(set []netlink.Route) error {
	have, err := n.mainRoutes()
	if err != nil {
		return err
	}
	for _, old := range have {
		if old.Protocol == unix.RTPROT_KERNEL || slices.ContainsFunc(set, func(r netlink.Route) bool { return same(r, old) }) {
			continue
		}
		if err := n.kernel.RouteDel(&old); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("remove route %s: %w", old, err)
		}
	}
	return nil
}

// same tells whether two routes are one entry of the table.
func same(a, b netlink.Route) bool {
	return a.LinkIndex == b.LinkIndex && destination(a) == destination(b) && a.Gw.Equal(b.Gw)
}

// destination is where a route leads; the kernel's default route has none.
func destination(r netlink.Route) netip.Prefix {
	prefix, ok := toPrefix(r.Dst)
	if !ok && r.Family == netlink.FAMILY_V6 {
		return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	if !ok {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return prefix
}

func (n *Network) mainRoutes() ([]netlink.Route, error) {
	filter := &netlink.Route{Table: unix.RT_TABLE_MAIN}
	var all []netlink.Route
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := dump(func() ([]netlink.Route, error) {
			return n.kernel.RouteListFiltered(family, filter, netlink.RT_FILTER_TABLE)
		})
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		all = append(all, routes...)
	}
	return all, nil
}

// ListRoutes describes the main table, without IPv6's link-local and multicast routes, which every card has.
func (n *Network) ListRoutes(context.Context) ([]*typespb.Route, error) {
	routes, err := n.mainRoutes()
	if err != nil {
		return nil, err
	}
	names, err := n.names()
	if err != nil {
		return nil, err
	}
	var list []*typespb.Route
	for _, r := range routes {
		to := destination(r)
		if to.Addr().Is6() && (to.Addr().IsLinkLocalUnicast() || to.Addr().IsMulticast()) {
			continue
		}
		out := &typespb.Route{
			Device: names[r.LinkIndex], Scope: uint32(r.Scope), Family: protoFamily(to.Addr()), Flags: uint32(r.Flags), Mtu: uint32(r.MTU),
		}
		if to.Bits() > 0 {
			out.Dest = to.String()
		}
		if r.Gw != nil {
			out.Gateway = r.Gw.String()
		}
		if r.Src != nil {
			out.Source = r.Src.String()
		}
		list = append(list, out)
	}
	return list, nil
}

// names maps card numbers to names.
func (n *Network) names() (map[int]string, error) {
	links, err := dump(n.kernel.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list network cards: %w", err)
	}
	names := map[int]string{}
	for _, link := range links {
		names[link.Attrs().Index] = link.Attrs().Name
	}
	return names, nil
}

func protoFamily(ip netip.Addr) typespb.IPFamily {
	if ip.Is4() {
		return typespb.IPFamily_v4
	}
	return typespb.IPFamily_v6
}
