package network

import (
	"errors"
	"runtime"
	"slices"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/integration/require"
	typespb "github.com/coffer-project/coffer/proto/types"
)

const secondMAC = "02:00:00:00:00:02"

// inNamespace gives the test a network namespace of its own, with two cards made as one cable.
func inNamespace(t *testing.T) *Network {
	t.Helper()
	require.Root(t)
	runtime.LockOSThread() // never unlocked: the thread ends with the test
	old, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { old.Close() })
	fresh, err := netns.New()
	if err != nil {
		require.Missing(t, "needs network namespaces, got "+err.Error()+": run make test where root may make them")
	}
	t.Cleanup(func() {
		if err := errors.Join(netns.Set(old), fresh.Close()); err != nil {
			t.Error(err)
		}
	})
	err = addCable("x0", goodMAC, "x1", secondMAC)
	if errors.Is(err, unix.EOPNOTSUPP) {
		require.Missing(t, "needs a kernel with veth: modprobe veth")
	}
	if err != nil {
		t.Fatal(err)
	}
	return New()
}

func addCable(name, mac, peer, peerMAC string) error {
	cable := &netlink.Veth{LinkAttrs: netlink.NewLinkAttrs(), PeerName: peer}
	cable.Name = name
	cable.HardwareAddr, _ = checkMAC(mac)
	cable.PeerHardwareAddr, _ = checkMAC(peerMAC)
	return netlink.LinkAdd(cable)
}

func TestUpdate(t *testing.T) {
	n := inNamespace(t)
	v4, v6 := typespb.IPFamily_v4, typespb.IPFamily_v6
	update := func(mac, name string, mtu uint64, addresses ...*typespb.IPAddress) *typespb.Interface {
		t.Helper()
		got, err := n.UpdateInterface(t.Context(), &typespb.Interface{HwAddr: mac, Name: name, Mtu: mtu, IPAddresses: addresses})
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	update(goodMAC, "eth0", 1400, address("10.0.0.2", "24", v4), address("fd00::2", "64", v6))
	update(secondMAC, "eth1", 0)
	// The names change places, and the addresses are replaced.
	update(secondMAC, "eth0", 0)
	got := update(goodMAC, "eth1", 1300, address("10.0.0.3", "24", v4), address("10.0.0.2", "24", v4))
	if got.Name != "eth1" || got.HwAddr != goodMAC || got.Mtu != 1300 {
		t.Errorf("got %v", got)
	}
	var ips []string
	for _, a := range got.IPAddresses {
		if a.Family == v4 || a.Address[:2] != "fe" {
			ips = append(ips, a.Address+"/"+a.Mask)
		}
	}
	if slices.Sort(ips); !slices.Equal(ips, []string{"10.0.0.2/24", "10.0.0.3/24"}) {
		t.Errorf("addresses %v", ips)
	}
	cards, err := n.ListInterfaces(t.Context())
	if err != nil || len(cards) != 2 {
		t.Errorf("cards %v, %v", cards, err)
	}

	// No subtests: they would run on other threads, which are in another namespace.
	testRoutes(t, n)
	testNeighbours(t, n)
	testLate(t, n)
}

func testRoutes(t *testing.T, n *Network) {
	set := func(routes ...*typespb.Route) []string {
		t.Helper()
		got, err := n.UpdateRoutes(t.Context(), routes)
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, r := range got {
			if r.Device == "eth1" && r.Family == typespb.IPFamily_v4 {
				out = append(out, r.Dest+" via "+r.Gateway)
			}
		}
		slices.Sort(out)
		return out
	}
	// The gateway is reachable only by the second route.
	got := set(&typespb.Route{Gateway: "169.254.1.1", Device: "eth1"}, &typespb.Route{Dest: "169.254.1.1", Device: "eth1", Scope: 253})
	if want := []string{" via 169.254.1.1", "10.0.0.0/24 via ", "169.254.1.1/32 via "}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	got = set(&typespb.Route{Dest: "192.168.0.0/16", Gateway: "10.0.0.1", Device: "eth1", Mtu: 1200})
	if want := []string{"10.0.0.0/24 via ", "192.168.0.0/16 via 10.0.0.1"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	_, err := n.UpdateRoutes(t.Context(), []*typespb.Route{{Gateway: "10.0.0.1", Device: "eth7"}})
	if !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("route by a card that is not there: %v", err)
	}
	// A bad route changes nothing, not even by the good one before it.
	_, err = n.UpdateRoutes(t.Context(), []*typespb.Route{{Dest: "172.16.0.0/12", Device: "eth1"}, {Dest: "bad", Device: "eth1"}})
	if !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("bad route: %v", err)
	}
	routes, err := n.ListRoutes(t.Context())
	if err != nil || slices.ContainsFunc(routes, func(r *typespb.Route) bool { return r.Dest == "172.16.0.0/12" }) {
		t.Errorf("routes %v, %v", routes, err)
	}
}

func testNeighbours(t *testing.T, n *Network) {
	err := n.AddNeighbors(t.Context(), []*typespb.ARPNeighbor{
		{ToIPAddress: address("10.0.0.9", "", typespb.IPFamily_v4), Device: "eth1", Lladdr: secondMAC, State: unix.NUD_PERMANENT},
	})
	if err != nil {
		t.Fatal(err)
	}
	entries, err := netlink.NeighList(0, netlink.FAMILY_V4)
	if err != nil || !slices.ContainsFunc(entries, func(e netlink.Neigh) bool {
		return e.IP.String() == "10.0.0.9" && e.HardwareAddr.String() == secondMAC && e.State == unix.NUD_PERMANENT
	}) {
		t.Errorf("entries %v, %v", entries, err)
	}
}

func testLate(t *testing.T, n *Network) {
	const lateMAC = "02:00:00:00:00:03"
	here, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer here.Close()
	added := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread is in another namespace
		if err := netns.Set(here); err != nil {
			added <- err
			return
		}
		added <- addCable("late", lateMAC, "late1", "02:00:00:00:00:04")
	}()
	_, err = n.UpdateInterface(t.Context(), &typespb.Interface{HwAddr: lateMAC, Name: "eth2"})
	if addErr := <-added; addErr != nil || err != nil {
		t.Errorf("add card: %v, update it: %v", addErr, err)
	}
}
