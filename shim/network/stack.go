package network

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/containerd/log"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// tapPrefix begins the name of every tap that Attach makes.
const tapPrefix = "coffer-tap"

// stack is the network stack of the namespace that the thread was in when it was opened.
type stack struct{ handle *netlink.Handle }

func openStack() (*stack, error) {
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	return &stack{handle: handle}, nil
}

func (s *stack) close() { s.handle.Close() }

// podLinks returns the interfaces to join: Ethernet, up, not loopback and not ours. A fresh namespace also has the
// fallback devices of tunnel modules (gretap0, erspan0, sit0, ...), which are down.
func (s *stack) podLinks() ([]netlink.Link, error) {
	links, err := s.handle.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	return slices.DeleteFunc(links, func(link netlink.Link) bool {
		attrs := link.Attrs()
		return attrs.EncapType != "ether" || attrs.Flags&net.FlagUp == 0 || attrs.Flags&net.FlagLoopback != 0 ||
			strings.HasPrefix(attrs.Name, tapPrefix)
	}), nil
}

func (s *stack) describe(link netlink.Link) (Interface, error) {
	attrs := link.Attrs()
	addrs, err := s.handle.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return Interface{}, fmt.Errorf("list addresses of %s: %w", attrs.Name, err)
	}
	iface := Interface{Name: attrs.Name, MAC: attrs.HardwareAddr, MTU: attrs.MTU}
	for _, addr := range addrs {
		prefix, ok := toPrefix(addr.IPNet)
		if ok && !(prefix.Addr().Is6() && prefix.Addr().IsLinkLocalUnicast()) {
			iface.Addresses = append(iface.Addresses, prefix)
		}
	}
	return iface, nil
}

// routes returns the main table's routes through links, on-link ones first.
func (s *stack) routes(ctx context.Context, links []netlink.Link) ([]Route, error) {
	var routes []Route
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		// RouteList reads the main table only.
		found, err := s.handle.RouteList(nil, family)
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		for _, r := range found {
			route, ok := toRoute(r, family, links)
			if !ok && r.Protocol != unix.RTPROT_KERNEL {
				log.G(ctx).WithField("route", r.String()).Warn("pod route cannot be given to the guest")
			}
			if ok {
				routes = append(routes, route)
			}
		}
	}
	slices.SortStableFunc(routes, func(a, b Route) int {
		return cmp.Compare(rank(a), rank(b))
	})
	return routes, nil
}

// rank orders routes so that a gateway is reachable before a route names it: on-link, then by gateway, default last.
func rank(r Route) int {
	switch {
	case !r.Gateway.IsValid():
		return 0
	case r.Destination.Bits() > 0:
		return 1
	}
	return 2
}

// toRoute converts a unicast route over one of links. Routes that the kernel made for an address are left out, since
// the guest's kernel makes them too.
func toRoute(r netlink.Route, family int, links []netlink.Link) (Route, bool) {
	i := slices.IndexFunc(links, func(l netlink.Link) bool { return l.Attrs().Index == r.LinkIndex })
	if i < 0 || r.Type != unix.RTN_UNICAST || r.Protocol == unix.RTPROT_KERNEL {
		return Route{}, false
	}
	route := Route{
		Device: links[i].Attrs().Name, Scope: uint8(r.Scope), Flags: uint32(r.Flags), MTU: uint32(max(r.MTU, 0)),
		Gateway: toAddr(r.Gw), Source: toAddr(r.Src),
		Destination: netip.PrefixFrom(netip.IPv4Unspecified(), 0),
	}
	if family == netlink.FAMILY_V6 {
		route.Destination = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	if r.Dst != nil {
		prefix, ok := toPrefix(r.Dst)
		if !ok {
			return Route{}, false
		}
		route.Destination = prefix
	}
	return route, true
}

func (s *stack) neighbours(links []netlink.Link) ([]Neighbour, error) {
	var neighbours []Neighbour
	for _, link := range links {
		found, err := s.handle.NeighList(link.Attrs().Index, netlink.FAMILY_ALL)
		if err != nil {
			return nil, fmt.Errorf("list neighbours of %s: %w", link.Attrs().Name, err)
		}
		for _, n := range found {
			if addr := toAddr(n.IP); n.State == netlink.NUD_PERMANENT && addr.IsValid() && len(n.HardwareAddr) > 0 {
				neighbours = append(neighbours, Neighbour{
					Address: addr, Device: link.Attrs().Name, MAC: n.HardwareAddr, State: n.State, Flags: n.Flags,
				})
			}
		}
	}
	return neighbours, nil
}

func toAddr(ip net.IP) netip.Addr {
	addr, _ := netip.AddrFromSlice(ip)
	return addr.Unmap()
}

func toPrefix(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	ones, _ := n.Mask.Size()
	prefix := netip.PrefixFrom(toAddr(n.IP), ones)
	return prefix, prefix.IsValid()
}

func isNotExist(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EINVAL)
}
