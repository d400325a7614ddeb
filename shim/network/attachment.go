package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/shim/netns"
	"github.com/coffer-project/coffer/shim/vm"
)

// Attachment is a pod network that a VM can be put on.
type Attachment struct {
	// Interfaces, Routes and Neighbours are what the guest is to configure, in this order: routes that reach a
	// gateway come before those that use it.
	Interfaces []Interface
	Routes     []Route
	Neighbours []Neighbour

	netns string

	mu   sync.Mutex
	taps []*os.File // of Interfaces, in order; nil once NICs has handed them over
}

// Interface is one of the pod's network interfaces as the guest is to have it.
type Interface struct {
	// Name is the pod's name for it, such as eth0. The guest finds its card by MAC.
	Name string
	MAC  net.HardwareAddr
	// MTU is in bytes.
	MTU int
	// Addresses are the interface's own, with the length of their on-link prefix. IPv6 link-local ones are left out:
	// the guest makes its own.
	Addresses []netip.Prefix
}

// Route is one route of the pod's main table, less those that the kernel makes by itself for an address.
type Route struct {
	// Destination is 0.0.0.0/0 or ::/0 for a default route.
	Destination netip.Prefix
	// Gateway is invalid for an on-link route, Source when the kernel is to choose.
	Gateway, Source netip.Addr
	// Device is an Interface's name.
	Device string
	// Scope is the kernel's number: 0 universe, 253 link.
	Scope uint8
	// Flags are the next hop's, such as RTNH_F_ONLINK (4).
	Flags uint32
	// MTU is the route's own in bytes, 0 for none.
	MTU uint32
}

// Neighbour is a permanent entry of the neighbour table.
type Neighbour struct {
	Address netip.Addr
	Device  string
	MAC     net.HardwareAddr
	// State and Flags are the kernel's numbers; State is always NUD_PERMANENT (128).
	State, Flags int
}

// Attach makes a tap for every Ethernet interface in the namespace at path and joins them. It fails with
// errdefs.ErrNotFound when the namespace is gone, and with errdefs.ErrFailedPrecondition when it has no interface
// or one that something else has put filters on. A failed Attach leaves nothing behind. The caller calls Detach.
func Attach(ctx context.Context, path string) (_ *Attachment, retErr error) {
	if path == "" {
		return nil, fmt.Errorf("attach pod network: %w: the pod has no network namespace of its own (host network), "+
			"and a VM cannot use the host's", errdefs.ErrFailedPrecondition)
	}
	a := &Attachment{netns: path}
	err := netns.Do(path, func() (retErr error) {
		s, err := openStack()
		if err != nil {
			return err
		}
		defer s.close()
		defer func() {
			if retErr != nil {
				a.closeTaps()
				retErr = errors.Join(retErr, s.detach())
			}
		}()
		return a.build(ctx, s)
	})
	if err != nil {
		return nil, fmt.Errorf("attach pod network %s: %w", path, err)
	}
	return a, nil
}

func (a *Attachment) build(ctx context.Context, s *stack) error {
	links, err := s.podLinks()
	if err != nil {
		return err
	}
	if len(links) == 0 {
		return fmt.Errorf("%w: no Ethernet interface that is up; has CNI run?", errdefs.ErrFailedPrecondition)
	}
	for i, link := range links {
		if err := ctx.Err(); err != nil {
			return err
		}
		tap, err := s.join(link, fmt.Sprintf("%s%d", tapPrefix, i))
		if err != nil {
			return fmt.Errorf("interface %s: %w", link.Attrs().Name, err)
		}
		a.taps = append(a.taps, tap)
		iface, err := s.describe(link)
		if err != nil {
			return err
		}
		a.Interfaces = append(a.Interfaces, iface)
	}
	if a.Routes, err = s.routes(ctx, links); err != nil {
		return err
	}
	a.Neighbours, err = s.neighbours(links)
	return err
}

// NICs hands the taps over for vm.Config, in the order of Interfaces. The second call returns none.
func (a *Attachment) NICs() []vm.NIC {
	a.mu.Lock()
	defer a.mu.Unlock()
	nics := make([]vm.NIC, 0, len(a.taps))
	for i, tap := range a.taps {
		nics = append(nics, vm.NIC{Tap: tap, MAC: a.Interfaces[i].MAC})
	}
	a.taps = nil
	return nics
}

// Detach undoes Attach. It is idempotent and succeeds when the namespace is gone. Call it after the VM has stopped.
func (a *Attachment) Detach(ctx context.Context) error {
	a.closeTaps()
	return Detach(ctx, a.netns)
}

func (a *Attachment) closeTaps() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, tap := range a.taps {
		tap.Close()
	}
	a.taps = nil
}

// Detach removes what an Attach of an earlier process left in the namespace at path. It is idempotent and succeeds when
// the namespace is gone.
func Detach(ctx context.Context, path string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if path == "" {
		return nil
	}
	err := netns.Do(path, func() error {
		s, err := openStack()
		if err != nil {
			return err
		}
		defer s.close()
		return s.detach()
	})
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("detach pod network %s: %w", path, err)
	}
	return nil
}
