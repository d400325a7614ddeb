package network

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/integration/require"
	"github.com/coffer-project/coffer/shim/netns"
	"github.com/coffer-project/coffer/shim/netns/netnstest"
)

// within runs fn in the namespace and fails the test on error.
func within(t *testing.T, path string, fn func() error) {
	t.Helper()
	if err := netns.Do(path, fn); err != nil {
		t.Fatal(err)
	}
}

func must(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// newPod makes a namespace pair joined by a veth, as a CNI plugin would: eth0 in the pod with 10.88.0.2/24 and a
// default route by 10.88.0.1, which is veth0 in the other.
func newPod(t *testing.T) (pod, outside string) {
	t.Helper()
	require.Root(t)
	pod, outside = netnstest.New(t), netnstest.New(t)
	podFile, err := os.Open(pod)
	if err != nil {
		t.Fatal(err)
	}
	defer podFile.Close()
	within(t, outside, func() error {
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "veth0", MTU: 1400}, PeerName: "eth0"}
		if err := netlink.LinkAdd(veth); err != nil {
			return err
		}
		peer, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		addr, _ := netlink.ParseAddr("10.88.0.1/24")
		return must(netlink.LinkSetMTU(peer, 1400), netlink.LinkSetNsFd(peer, int(podFile.Fd())),
			netlink.AddrAdd(veth, addr), netlink.LinkSetUp(veth))
	})
	within(t, pod, func() error {
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		mac, _ := net.ParseMAC("0a:58:0a:58:00:02")
		v4, _ := netlink.ParseAddr("10.88.0.2/24")
		v6, _ := netlink.ParseAddr("fd00::2/64")
		_, far, _ := net.ParseCIDR("192.0.2.0/24")
		return must(netlink.LinkSetHardwareAddr(eth0, mac), netlink.LinkSetUp(eth0), netlink.AddrAdd(eth0, v4), netlink.AddrAdd(eth0, v6),
			netlink.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index, Gw: net.IPv4(10, 88, 0, 1)}),
			netlink.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index, Dst: far, Scope: netlink.SCOPE_LINK, MTU: 1300}),
			netlink.NeighAdd(&netlink.Neigh{LinkIndex: eth0.Attrs().Index, State: netlink.NUD_PERMANENT,
				IP: net.IPv4(10, 88, 0, 9), HardwareAddr: mac}))
	})
	return pod, outside
}

func TestAttachDescribes(t *testing.T) {
	pod, _ := newPod(t)
	a, err := Attach(t.Context(), pod)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Detach(t.Context())
	if len(a.Interfaces) != 1 {
		t.Fatalf("interfaces: %+v", a.Interfaces)
	}
	eth0 := a.Interfaces[0]
	if eth0.Name != "eth0" || eth0.MTU != 1400 || eth0.MAC.String() != "0a:58:0a:58:00:02" ||
		fmt.Sprint(eth0.Addresses) != "[10.88.0.2/24 fd00::2/64]" {
		t.Errorf("interface: %+v", eth0)
	}
	want := []Route{
		{Destination: netip.MustParsePrefix("192.0.2.0/24"), Device: "eth0", Scope: 253, MTU: 1300},
		{Destination: netip.MustParsePrefix("0.0.0.0/0"), Device: "eth0", Gateway: netip.MustParseAddr("10.88.0.1")},
	}
	if fmt.Sprint(a.Routes) != fmt.Sprint(want) {
		t.Errorf("routes: %+v, want %+v", a.Routes, want)
	}
	if len(a.Neighbours) != 1 || a.Neighbours[0].Address.String() != "10.88.0.9" || a.Neighbours[0].State != 128 {
		t.Errorf("neighbours: %+v", a.Neighbours)
	}
	nics := a.NICs()
	if len(nics) != 1 || nics[0].MAC.String() != eth0.MAC.String() || len(a.NICs()) != 0 {
		t.Errorf("nics: %+v", nics)
	}
	nics[0].Tap.Close()
}

// vnetHeader is the length of the header that IFF_VNET_HDR puts before each frame; all zeros means a plain frame.
const vnetHeader = 10

// frame makes an Ethernet frame of an experimental type, which no stack answers by itself.
func frame(dst, src net.HardwareAddr, body string) []byte {
	return append(append(append(append([]byte(nil), dst...), src...), 0x88, 0xb5), body...)
}

// rawSocket opens a packet socket on a link of the current namespace.
func rawSocket(name string) (*os.File, net.HardwareAddr, error) {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return nil, nil, err
	}
	protocol := uint16(0xb588) // ETH_P_802_EX1 in network order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, int(protocol))
	if err != nil {
		return nil, nil, err
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: protocol, Ifindex: link.Attrs().Index}); err != nil {
		unix.Close(fd)
		return nil, nil, err
	}
	return os.NewFile(uintptr(fd), name), link.Attrs().HardwareAddr, nil
}

// readFrame reads until a frame with the body arrives.
func readFrame(t *testing.T, file *os.File, body string) {
	t.Helper()
	if err := file.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	buffer := make([]byte, 4096)
	for {
		n, err := file.Read(buffer)
		if err != nil {
			t.Fatalf("no frame %q: %v", body, err)
		}
		if bytes.Contains(buffer[:n], []byte(body)) {
			return
		}
	}
}

func TestFramesPassBothWays(t *testing.T) {
	pod, outside := newPod(t)
	a, err := Attach(t.Context(), pod)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Detach(t.Context())
	var peer *os.File
	var peerMAC net.HardwareAddr
	within(t, outside, func() (err error) { peer, peerMAC, err = rawSocket("veth0"); return err })
	defer peer.Close()
	tap := a.taps[0]

	if _, err := peer.Write(frame(a.Interfaces[0].MAC, peerMAC, "from outside to the guest")); err != nil {
		t.Fatal(err)
	}
	readFrame(t, tap, "from outside to the guest")

	out := append(make([]byte, vnetHeader), frame(peerMAC, a.Interfaces[0].MAC, "from the guest to outside")...)
	if _, err := tap.Write(out); err != nil {
		t.Fatal(err)
	}
	readFrame(t, peer, "from the guest to outside")
}

// state lists what Attach could leave: interfaces and ingress queues.
func state(t *testing.T, pod string) (text string) {
	t.Helper()
	within(t, pod, func() error {
		links, err := netlink.LinkList()
		if err != nil {
			return err
		}
		for _, link := range links {
			text += link.Attrs().Name
			qdiscs, err := netlink.QdiscList(link)
			if err != nil {
				return err
			}
			for _, q := range qdiscs {
				if q.Attrs().Parent == netlink.HANDLE_INGRESS {
					text += "+ingress"
				}
			}
			text += " "
		}
		return nil
	})
	return text
}

func TestDetachLeavesNothing(t *testing.T) {
	pod, _ := newPod(t)
	before := state(t, pod)
	a, err := Attach(t.Context(), pod)
	if err != nil {
		t.Fatal(err)
	}
	if state(t, pod) == before {
		t.Fatal("attach changed nothing, so this test could not fail")
	}
	for range 2 {
		if err := a.Detach(t.Context()); err != nil {
			t.Fatal(err)
		}
		if after := state(t, pod); after != before {
			t.Errorf("left behind: %s, before: %s", after, before)
		}
	}
	if err := Detach(t.Context(), "/proc/1/task/none/ns/net"); err != nil {
		t.Errorf("detach of a namespace that is gone: %v", err)
	}
}

func TestAttachAfterCrash(t *testing.T) {
	pod, outside := newPod(t)
	crashed, err := Attach(t.Context(), pod)
	if err != nil {
		t.Fatal(err)
	}
	crashed.closeTaps() // what the death of shim and QEMU does; the filter on eth0 stays
	a, err := Attach(t.Context(), pod)
	if err != nil {
		t.Fatalf("second attach: %v", err)
	}
	defer a.Detach(t.Context())
	var peer *os.File
	within(t, outside, func() (err error) { peer, _, err = rawSocket("veth0"); return err })
	defer peer.Close()
	if _, err := peer.Write(frame(a.Interfaces[0].MAC, a.Interfaces[0].MAC, "after the crash")); err != nil {
		t.Fatal(err)
	}
	readFrame(t, a.taps[0], "after the crash")
}

func TestAttachFaults(t *testing.T) {
	t.Run("foreign filter stays", func(t *testing.T) {
		pod, _ := newPod(t)
		within(t, pod, func() error {
			eth0, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			return must(
				netlink.QdiscAdd(&netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: eth0.Attrs().Index, Parent: netlink.HANDLE_INGRESS}}),
				netlink.FilterAdd(&netlink.U32{
					FilterAttrs: netlink.FilterAttrs{LinkIndex: eth0.Attrs().Index, Parent: netlink.MakeHandle(0xffff, 0), Priority: 1, Protocol: unix.ETH_P_ALL},
					Actions:     []netlink.Action{netlink.NewMirredAction(1)}, // to lo
				}))
		})
		before := state(t, pod)
		if _, err := Attach(t.Context(), pod); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("got %v", err)
		}
		if after := state(t, pod); after != before {
			t.Errorf("changed from %s to %s", before, after)
		}
	})
	t.Run("clsact stays", func(t *testing.T) {
		pod, _ := newPod(t)
		within(t, pod, func() error {
			eth0, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			return netlink.QdiscAdd(&netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: eth0.Attrs().Index,
				Parent: netlink.HANDLE_CLSACT, Handle: netlink.MakeHandle(0xffff, 0)}})
		})
		before := state(t, pod)
		if _, err := Attach(t.Context(), pod); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("got %v", err)
		}
		if after := state(t, pod); after != before {
			t.Errorf("changed from %s to %s", before, after)
		}
	})
	t.Run("no interface", func(t *testing.T) {
		require.Root(t)
		if _, err := Attach(t.Context(), netnstest.New(t)); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("no namespace", func(t *testing.T) {
		if _, err := Attach(t.Context(), "/proc/1/task/none/ns/net"); !errdefs.IsNotFound(err) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("host network", func(t *testing.T) {
		if _, err := Attach(t.Context(), ""); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("got %v", err)
		}
	})
}
