package qemu

import (
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/coffer-project/coffer/integration/require"
	"github.com/coffer-project/coffer/shim/netns"
	"github.com/coffer-project/coffer/shim/netns/netnstest"
	"github.com/coffer-project/coffer/shim/network"
)

// TestPodNetwork puts a guest on a pod's network and connects to it from outside.
func TestPodNetwork(t *testing.T) {
	require.Root(t)
	g := needGuest(t)
	pod, outside := netnstest.New(t), netnstest.New(t)
	podFile, err := os.Open(pod)
	if err != nil {
		t.Fatal(err)
	}
	defer podFile.Close()
	mac := net.HardwareAddr{0x0a, 0x58, 0x0a, 0x58, 0, 2}
	err = netns.Do(outside, func() error {
		addr, _ := netlink.ParseAddr("10.88.0.1/24")
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "veth0"}, PeerName: "eth0", PeerHardwareAddr: mac,
			PeerNamespace: netlink.NsFd(podFile.Fd())}
		if err := netlink.LinkAdd(veth); err != nil {
			return err
		}
		if err := netlink.AddrAdd(veth, addr); err != nil {
			return err
		}
		return netlink.LinkSetUp(veth)
	})
	if err == nil {
		err = netns.Do(pod, func() error {
			eth0, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			addr, _ := netlink.ParseAddr("10.88.0.2/24")
			if err := netlink.AddrAdd(eth0, addr); err != nil { // and it stays there
				return err
			}
			return netlink.LinkSetUp(eth0)
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	attachment, err := network.Attach(t.Context(), pod)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { attachment.Detach(t.Context()) })
	config := g.config(t)
	config.NetNS, config.NICs = pod, attachment.NICs()
	instance := boot(t, newDriver(t, nil), config)
	if got := mustAsk(t, instance, "net 10.88.0.2 4000"); got != "listening" {
		t.Fatal(got)
	}
	var got []byte
	err = netns.Do(outside, func() error {
		conn, err := net.Dial("tcp4", "10.88.0.2:4000")
		if err != nil {
			return err
		}
		defer conn.Close()
		got, err = io.ReadAll(conn)
		return err
	})
	if err != nil || strings.TrimSpace(string(got)) != mac.String() {
		t.Errorf("the guest said %q, %v", got, err)
	}
	// QEMU lives in the pod's namespace, and its tap goes with it.
	qemuNS, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", instance.PID()))
	if err != nil {
		t.Fatal(err)
	}
	if want, _ := os.Readlink(pod); qemuNS != want {
		t.Errorf("QEMU is in %s, the pod is %s", qemuNS, want)
	}
	if err := instance.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	err = netns.Do(pod, func() error {
		links, err := netlink.LinkList()
		for _, link := range links {
			if link.Type() == "tuntap" {
				return fmt.Errorf("%s outlives the vm", link.Attrs().Name)
			}
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
