package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	typespb "github.com/coffer-project/coffer/proto/types"
)

// cardTimeout bounds how long a card may take to appear: its driver may still be loading, or it is being plugged in.
const cardTimeout = 10 * time.Second

// Network is the guest's network. Its methods are safe for concurrent use; changes are made one at a time.
type Network struct {
	mu     sync.Mutex
	kernel *netlink.Handle
}

// New returns the network of the calling thread's network namespace.
func New() *Network { return &Network{kernel: &netlink.Handle{}} }

// UpdateInterface gives the card with the wanted hardware address its name, MTU and addresses, removes other addresses,
// and brings it up. It waits for a card that is not there yet and fails with errdefs.ErrNotFound when none comes. It
// returns the card as it is then.
func (n *Network) UpdateInterface(ctx context.Context, wanted *typespb.Interface) (*typespb.Interface, error) {
	c, err := checkCard(wanted)
	if err != nil {
		return nil, fmt.Errorf("set up network card: %w", err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	link, err := n.waitForCard(ctx, c.mac)
	if err != nil {
		return nil, fmt.Errorf("set up network card %s: %w", c.name, err)
	}
	if err := n.apply(ctx, link, c); err != nil {
		return nil, fmt.Errorf("set up network card %s: %w", c.name, err)
	}
	return n.describeByName(c.name)
}

// apply makes the changes in the order that the kernel wants: a card must be down to be renamed.
func (n *Network) apply(ctx context.Context, link netlink.Link, c *card) error {
	if link.Attrs().Name != c.name {
		if err := n.rename(link, c.name); err != nil {
			return err
		}
	}
	if c.mtu != 0 && link.Attrs().MTU != c.mtu {
		if err := n.kernel.LinkSetMTU(link, c.mtu); err != nil {
			return fmt.Errorf("set MTU %d: %w", c.mtu, err)
		}
	}
	if c.noARP {
		if err := n.kernel.LinkSetARPOff(link); err != nil {
			return fmt.Errorf("switch ARP off: %w", err)
		}
	}
	if err := n.setAddresses(link, c.addresses); err != nil {
		return err
	}
	if err := n.kernel.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring up: %w", err)
	}
	log.G(ctx).WithField("card", c.name).Debug("network card set up")
	return nil
}

// rename gives the card its name. Another card that has the name gets one out of the way, until its own turn comes.
func (n *Network) rename(link netlink.Link, name string) error {
	other, err := n.kernel.LinkByName(name)
	switch {
	case err == nil:
		if err := n.renameDown(other, fmt.Sprintf("spare%d", other.Attrs().Index)); err != nil {
			return fmt.Errorf("move card %s aside: %w", name, err)
		}
	case !isNoLink(err):
		return fmt.Errorf("look for card %s: %w", name, err)
	}
	return n.renameDown(link, name)
}

func (n *Network) renameDown(link netlink.Link, name string) error {
	if err := n.kernel.LinkSetDown(link); err != nil {
		return fmt.Errorf("bring down: %w", err)
	}
	if err := n.kernel.LinkSetName(link, name); err != nil {
		return fmt.Errorf("rename to %s: %w", name, err)
	}
	return nil
}

// setAddresses adds what is wanted and removes what is not, except the link-local addresses that the kernel makes.
func (n *Network) setAddresses(link netlink.Link, wanted []netip.Prefix) error {
	have, err := dump(func() ([]netlink.Addr, error) { return n.kernel.AddrList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	for _, old := range have {
		prefix, ok := toPrefix(old.IPNet)
		if !ok || slices.Contains(wanted, prefix) || prefix.Addr().IsLinkLocalUnicast() && prefix.Addr().Is6() {
			continue
		}
		if err := n.kernel.AddrDel(link, &old); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("remove address %s: %w", prefix, err)
		}
	}
	for _, prefix := range wanted {
		addr := &netlink.Addr{IPNet: toNet(prefix)}
		if prefix.Addr().Is6() {
			// The address is the host's choice; asking the neighbours for a duplicate delays its use by a second.
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := n.kernel.AddrReplace(link, addr); err != nil {
			return fmt.Errorf("add address %s: %w", prefix, err)
		}
	}
	return nil
}

// ListInterfaces describes all cards but loopback.
func (n *Network) ListInterfaces(context.Context) ([]*typespb.Interface, error) {
	links, err := dump(n.kernel.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list network cards: %w", err)
	}
	var list []*typespb.Interface
	for _, link := range links {
		if link.Attrs().Flags&net.FlagLoopback != 0 {
			continue
		}
		described, err := n.describe(link)
		if err != nil {
			return nil, err
		}
		list = append(list, described)
	}
	return list, nil
}

// AddNeighbors adds fixed neighbour entries, all of which are checked before the first is added.
func (n *Network) AddNeighbors(_ context.Context, wanted []*typespb.ARPNeighbor) error {
	if len(wanted) > maxNeighbours {
		return invalid("add %d neighbours", len(wanted))
	}
	checked := make([]neighbour, 0, len(wanted))
	for _, w := range wanted {
		c, err := checkNeighbour(w)
		if err != nil {
			return fmt.Errorf("add neighbour: %w", err)
		}
		checked = append(checked, c)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, c := range checked {
		link, err := n.byName(c.device)
		if err != nil {
			return fmt.Errorf("add neighbour %s: %w", c.ip, err)
		}
		entry := &netlink.Neigh{
			LinkIndex: link.Attrs().Index, State: unix.NUD_PERMANENT, IP: c.ip.AsSlice(), HardwareAddr: c.mac, Family: family(c.ip),
		}
		if c.router {
			entry.Flags = unix.NTF_ROUTER
		}
		if err := n.kernel.NeighSet(entry); err != nil {
			return fmt.Errorf("add neighbour %s on card %s: %w", c.ip, c.device, err)
		}
	}
	return nil
}

func (n *Network) byName(name string) (netlink.Link, error) {
	link, err := n.kernel.LinkByName(name)
	if isNoLink(err) {
		return nil, fmt.Errorf("network card %s: %w", name, errdefs.ErrNotFound)
	}
	return link, err
}

// maxDumps bounds how often a list is asked for again.
const maxDumps = 10

// dump asks the kernel for a list until it is whole: one that changes meanwhile comes with netlink.ErrDumpInterrupted.
func dump[T any](list func() ([]T, error)) (all []T, err error) {
	for range maxDumps {
		if all, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return all, err
}

func isNoLink(err error) bool {
	var none netlink.LinkNotFoundError
	return errors.As(err, &none)
}

func family(ip netip.Addr) int {
	if ip.Is4() {
		return netlink.FAMILY_V4
	}
	return netlink.FAMILY_V6
}

func toNet(prefix netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: prefix.Addr().AsSlice(), Mask: net.CIDRMask(prefix.Bits(), prefix.Addr().BitLen())}
}

func toPrefix(ipNet *net.IPNet) (netip.Prefix, bool) {
	if ipNet == nil {
		return netip.Prefix{}, false
	}
	ip, ok := netip.AddrFromSlice(ipNet.IP)
	bits, size := ipNet.Mask.Size()
	if ip = ip.Unmap(); !ok || size != ip.BitLen() {
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(ip, bits), true
}
