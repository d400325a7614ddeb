package network

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// join makes a tap beside link and the filters between the two. The caller undoes a failed join by detach.
func (s *stack) join(link netlink.Link, name string) (_ *os.File, retErr error) {
	file, err := openTap(name)
	if err != nil {
		return nil, err
	}
	defer func() {
		if retErr != nil {
			file.Close()
		}
	}()
	tap, err := s.handle.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("find tap %s: %w", name, err)
	}
	if err := s.handle.LinkSetMTU(tap, link.Attrs().MTU); err != nil {
		return nil, fmt.Errorf("set MTU of tap %s to %d: %w", name, link.Attrs().MTU, err)
	}
	if err := muteIPv6(name); err != nil {
		return nil, err
	}
	if err := s.handle.LinkSetUp(tap); err != nil {
		return nil, fmt.Errorf("set tap %s up: %w", name, err)
	}
	if err := s.redirect(link, tap); err != nil {
		return nil, err
	}
	if err := s.redirect(tap, link); err != nil {
		return nil, err
	}
	return file, nil
}

// openTap makes a tap device that lives as long as the file, or the process that inherits it, is open. Frames carry
// virtio's header (IFF_VNET_HDR), so that checksums and segmentation are left to whoever needs them.
func openTap(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/net/tun: %w (%w: load the kernel module tun)", err, errdefs.ErrFailedPrecondition)
	}
	ifreq, err := unix.NewIfreq(name)
	if err == nil {
		ifreq.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifreq)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("make tap %s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// muteIPv6 keeps the host from sending its own router solicitations and multicast reports to the guest.
func muteIPv6(name string) error {
	err := os.WriteFile(filepath.Join("/proc/sys/net/ipv6/conf", name, "disable_ipv6"), []byte("1"), 0)
	// A read-only /proc/sys costs a little noise, a kernel without IPv6 nothing.
	if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.EROFS) {
		return fmt.Errorf("disable IPv6 on tap %s: %w", name, err)
	}
	return nil
}

// redirect sends every frame that comes in by from out by to.
func (s *stack) redirect(from, to netlink.Link) error {
	qdisc := &netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: from.Attrs().Index, Parent: netlink.HANDLE_INGRESS}}
	foreign, _, err := s.ingress(from)
	if err != nil {
		return err
	}
	if foreign != "" {
		return fmt.Errorf("%w: %s already has %s at its ingress, which the VM's network cannot share",
			errdefs.ErrFailedPrecondition, from.Attrs().Name, foreign)
	}
	if err := s.removeRedirect(from); err != nil { // a crashed shim's
		return err
	}
	if err := s.handle.QdiscAdd(qdisc); err != nil {
		return fmt.Errorf("add ingress queue to %s: %w", from.Attrs().Name, err)
	}
	action := netlink.NewMirredAction(to.Attrs().Index)
	action.MirredAction = netlink.TCA_EGRESS_REDIR
	filter := &netlink.U32{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: from.Attrs().Index,
			Parent:    netlink.MakeHandle(0xffff, 0),
			Priority:  1,
			Protocol:  unix.ETH_P_ALL,
		},
		Actions: []netlink.Action{action},
	}
	if err := s.handle.FilterAdd(filter); err != nil {
		return fmt.Errorf("redirect %s to %s (the kernel needs cls_u32 and act_mirred): %w",
			from.Attrs().Name, to.Attrs().Name, err)
	}
	return nil
}

// removeRedirect removes the ingress queue that an Attach put on link, if there is one, and leaves others' alone.
func (s *stack) removeRedirect(link netlink.Link) error {
	foreign, present, err := s.ingress(link)
	if err != nil || !present || foreign != "" {
		return err
	}
	err = s.handle.QdiscDel(&netlink.Ingress{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: link.Attrs().Index, Parent: netlink.HANDLE_INGRESS},
	})
	if err != nil && !isNotExist(err) {
		return fmt.Errorf("remove ingress queue of %s: %w", link.Attrs().Name, err)
	}
	return nil
}

// ingress looks at link's ingress side: whether there is a queue, and if it is not ours, what shows that. An empty
// queue counts as ours: it does nothing, and a crash between queue and filter leaves one.
func (s *stack) ingress(link netlink.Link) (foreign string, present bool, _ error) {
	qdiscs, err := s.handle.QdiscList(link)
	if err != nil {
		return "", false, fmt.Errorf("list queues of %s: %w", link.Attrs().Name, err)
	}
	for _, qdisc := range qdiscs {
		if qdisc.Attrs().Parent != netlink.HANDLE_INGRESS {
			continue
		}
		if qdisc.Type() != "ingress" {
			return "a queue of type " + qdisc.Type(), true, nil
		}
		filters, err := s.handle.FilterList(link, netlink.MakeHandle(0xffff, 0))
		if err != nil {
			return "", false, fmt.Errorf("list filters of %s: %w", link.Attrs().Name, err)
		}
		for _, filter := range filters {
			if !s.isOurs(filter) {
				return "a filter of type " + filter.Type(), true, nil
			}
		}
		return "", true, nil
	}
	return "", false, nil
}

// isOurs tells whether filter redirects to a tap of ours, living or gone.
func (s *stack) isOurs(filter netlink.Filter) bool {
	u32, ok := filter.(*netlink.U32)
	if !ok || len(u32.Actions) != 1 {
		return false
	}
	mirred, ok := u32.Actions[0].(*netlink.MirredAction)
	if !ok || mirred.MirredAction != netlink.TCA_EGRESS_REDIR {
		return false
	}
	to, err := s.handle.LinkByIndex(mirred.Ifindex)
	var gone netlink.LinkNotFoundError
	if errors.As(err, &gone) || mirred.Ifindex == 0 {
		return true
	}
	return err == nil && strings.HasPrefix(to.Attrs().Name, tapPrefix)
}

// detach removes our filters from every interface of the namespace.
func (s *stack) detach() error {
	links, err := s.podLinks()
	if err != nil {
		return err
	}
	var faults []error
	for _, link := range links {
		faults = append(faults, s.removeRedirect(link))
	}
	return errors.Join(faults...)
}
