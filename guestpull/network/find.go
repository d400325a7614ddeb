package network

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"strconv"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	typespb "github.com/coffer-project/coffer/proto/types"
)

// waitForCard returns the one card with the hardware address, waiting for the kernel's news of a card until it is there.
func (n *Network) waitForCard(ctx context.Context, mac net.HardwareAddr) (netlink.Link, error) {
	if link, err := n.findCard(mac); err == nil || !errdefs.IsNotFound(err) {
		return link, err
	}
	ctx, cancel := context.WithTimeout(ctx, cardTimeout)
	defer cancel()
	// Subscribed before the next look, so that a card that appears in between is not missed.
	news := make(chan netlink.LinkUpdate, 16)
	done := make(chan struct{})
	defer close(done)
	if err := netlink.LinkSubscribe(news, done); err != nil {
		return nil, fmt.Errorf("watch for network cards: %w", err)
	}
	for {
		link, err := n.findCard(mac)
		if err == nil || !errdefs.IsNotFound(err) {
			return link, err
		}
		select {
		case _, open := <-news:
			if !open {
				return nil, fmt.Errorf("watch for network cards: subscription ended: %w", err)
			}
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", ctx.Err(), err)
		}
	}
}

func (n *Network) findCard(mac net.HardwareAddr) (netlink.Link, error) {
	links, err := dump(n.kernel.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list network cards: %w", err)
	}
	var found netlink.Link
	for _, link := range links {
		if !bytes.Equal(link.Attrs().HardwareAddr, mac) {
			continue
		}
		if found != nil {
			return nil, fmt.Errorf("cards %s and %s share hardware address %s: %w",
				found.Attrs().Name, link.Attrs().Name, mac, errdefs.ErrFailedPrecondition)
		}
		found = link
	}
	if found == nil {
		return nil, fmt.Errorf("no card with hardware address %s: %w", mac, errdefs.ErrNotFound)
	}
	return found, nil
}

func (n *Network) describeByName(name string) (*typespb.Interface, error) {
	link, err := n.byName(name)
	if err != nil {
		return nil, err
	}
	return n.describe(link)
}

// describe says what a card is like now.
func (n *Network) describe(link netlink.Link) (*typespb.Interface, error) {
	attrs := link.Attrs()
	addresses, err := dump(func() ([]netlink.Addr, error) { return n.kernel.AddrList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses of network card %s: %w", attrs.Name, err)
	}
	out := &typespb.Interface{
		Device: attrs.Name, Name: attrs.Name, Mtu: uint64(attrs.MTU), HwAddr: attrs.HardwareAddr.String(),
		RawFlags: attrs.RawFlags & unix.IFF_NOARP,
	}
	for _, a := range addresses {
		prefix, ok := toPrefix(a.IPNet)
		if !ok {
			continue
		}
		out.IPAddresses = append(out.IPAddresses, &typespb.IPAddress{
			Family: protoFamily(prefix.Addr()), Address: prefix.Addr().String(), Mask: strconv.Itoa(prefix.Bits()),
		})
	}
	return out, nil
}
