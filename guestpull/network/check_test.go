package network

import (
	"errors"
	"testing"

	"github.com/containerd/errdefs"

	typespb "github.com/coffer-project/coffer/proto/types"
)

const goodMAC = "02:00:00:00:00:01"

func address(ip, mask string, family typespb.IPFamily) *typespb.IPAddress {
	return &typespb.IPAddress{Address: ip, Mask: mask, Family: family}
}

func TestCheckCard(t *testing.T) {
	v4, v6 := typespb.IPFamily_v4, typespb.IPFamily_v6
	tests := map[string]struct {
		wanted *typespb.Interface
		ok     bool
	}{
		"good":                {&typespb.Interface{HwAddr: goodMAC, Name: "eth0", Mtu: 1450, IPAddresses: []*typespb.IPAddress{address("10.0.0.2", "24", v4), address("fd00::2", "64", v6)}}, true},
		"name from device":    {&typespb.Interface{HwAddr: goodMAC, Device: "eth0"}, true},
		"no ARP":              {&typespb.Interface{HwAddr: goodMAC, Name: "eth0", RawFlags: 0x80}, true},
		"no name":             {&typespb.Interface{HwAddr: goodMAC}, false},
		"loopback":            {&typespb.Interface{HwAddr: goodMAC, Name: "lo"}, false},
		"name with slash":     {&typespb.Interface{HwAddr: goodMAC, Name: "a/b"}, false},
		"name of dots":        {&typespb.Interface{HwAddr: goodMAC, Name: ".."}, false},
		"long name":           {&typespb.Interface{HwAddr: goodMAC, Name: "abcdefghijklmnop"}, false},
		"name with percent":   {&typespb.Interface{HwAddr: goodMAC, Name: "eth%d"}, false},
		"no MAC":              {&typespb.Interface{Name: "eth0"}, false},
		"zero MAC":            {&typespb.Interface{HwAddr: "00:00:00:00:00:00", Name: "eth0"}, false},
		"group MAC":           {&typespb.Interface{HwAddr: "01:00:5e:00:00:01", Name: "eth0"}, false},
		"long MAC":            {&typespb.Interface{HwAddr: "02:00:00:00:00:01:00:00", Name: "eth0"}, false},
		"tiny MTU":            {&typespb.Interface{HwAddr: goodMAC, Name: "eth0", Mtu: 67}, false},
		"huge MTU":            {&typespb.Interface{HwAddr: goodMAC, Name: "eth0", Mtu: 1 << 40}, false},
		"unknown flag":        {&typespb.Interface{HwAddr: goodMAC, Name: "eth0", RawFlags: 0x100}, false},
		"no mask":             {&typespb.Interface{HwAddr: goodMAC, Name: "eth0", IPAddresses: []*typespb.IPAddress{address("10.0.0.2", "", v4)}}, false},
		"zero mask":           {&typespb.Interface{HwAddr: goodMAC, Name: "eth0", IPAddresses: []*typespb.IPAddress{address("10.0.0.2", "0", v4)}}, false},
		"long mask":           {&typespb.Interface{HwAddr: goodMAC, Name: "eth0", IPAddresses: []*typespb.IPAddress{address("10.0.0.2", "33", v4)}}, false},
		"wrong family":        {&typespb.Interface{HwAddr: goodMAC, Name: "eth0", IPAddresses: []*typespb.IPAddress{address("10.0.0.2", "24", v6)}}, false},
		"unknown family":      {&typespb.Interface{HwAddr: goodMAC, Name: "eth0", IPAddresses: []*typespb.IPAddress{address("fd00::1", "24", 2)}}, false},
		"negative family":     {&typespb.Interface{HwAddr: goodMAC, Name: "eth0", IPAddresses: []*typespb.IPAddress{address("fd00::1", "24", -1)}}, false},
		"zone":                {&typespb.Interface{HwAddr: goodMAC, Name: "eth0", IPAddresses: []*typespb.IPAddress{address("fe80::1%lo", "64", v6)}}, false},
		"mapped":              {&typespb.Interface{HwAddr: goodMAC, Name: "eth0", IPAddresses: []*typespb.IPAddress{address("::ffff:10.0.0.1", "96", v6)}}, false},
		"loopback address":    {&typespb.Interface{HwAddr: goodMAC, Name: "eth0", IPAddresses: []*typespb.IPAddress{address("127.0.0.1", "8", v4)}}, false},
		"multicast address":   {&typespb.Interface{HwAddr: goodMAC, Name: "eth0", IPAddresses: []*typespb.IPAddress{address("224.0.0.1", "24", v4)}}, false},
		"unspecified address": {&typespb.Interface{HwAddr: goodMAC, Name: "eth0", IPAddresses: []*typespb.IPAddress{address("0.0.0.0", "24", v4)}}, false},
		"nil address":         {&typespb.Interface{HwAddr: goodMAC, Name: "eth0", IPAddresses: []*typespb.IPAddress{nil}}, false},
		"too many":            {&typespb.Interface{HwAddr: goodMAC, Name: "eth0", IPAddresses: make([]*typespb.IPAddress, 65)}, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) { expect(t, tt.ok, func() error { _, err := checkCard(tt.wanted); return err }) })
	}
	expect(t, false, func() error { _, err := checkCard(nil); return err })
}

func TestCheckRoute(t *testing.T) {
	v4, v6 := typespb.IPFamily_v4, typespb.IPFamily_v6
	tests := map[string]struct {
		wanted *typespb.Route
		ok     bool
	}{
		"default":             {&typespb.Route{Gateway: "10.0.0.1", Device: "eth0"}, true},
		"default v6":          {&typespb.Route{Gateway: "fd00::1", Device: "eth0", Family: v6}, true},
		"network":             {&typespb.Route{Dest: "10.1.0.0/16", Device: "eth0", Scope: 253, Source: "10.0.0.2"}, true},
		"host":                {&typespb.Route{Dest: "169.254.1.1", Device: "eth0", Scope: 253}, true},
		"state flags":         {&typespb.Route{Dest: "10.1.0.0/16", Device: "eth0", Flags: 4 | 16}, true},
		"no device":           {&typespb.Route{Dest: "10.1.0.0/16"}, false},
		"loopback":            {&typespb.Route{Dest: "10.1.0.0/16", Device: "lo"}, false},
		"to loopback":         {&typespb.Route{Dest: "127.0.0.0/8", Device: "eth0"}, false},
		"host bits":           {&typespb.Route{Dest: "10.1.0.1/16", Device: "eth0"}, false},
		"no network":          {&typespb.Route{Dest: "ten", Device: "eth0"}, false},
		"families differ":     {&typespb.Route{Dest: "10.1.0.0/16", Gateway: "fd00::1", Device: "eth0", Family: v4}, false},
		"family of other":     {&typespb.Route{Dest: "10.1.0.0/16", Device: "eth0", Family: v6}, false},
		"unknown family":      {&typespb.Route{Device: "eth0", Gateway: "10.0.0.1", Family: 7}, false},
		"unspecified gateway": {&typespb.Route{Gateway: "0.0.0.0", Device: "eth0"}, false},
		"bad source":          {&typespb.Route{Dest: "10.1.0.0/16", Device: "eth0", Source: "x"}, false},
		"scope":               {&typespb.Route{Dest: "10.1.0.0/16", Device: "eth0", Scope: 255}, false},
		"scope beyond a byte": {&typespb.Route{Dest: "10.1.0.0/16", Device: "eth0", Scope: 256}, false},
		"unknown flag":        {&typespb.Route{Dest: "10.1.0.0/16", Device: "eth0", Flags: 1 << 20}, false},
		"huge MTU":            {&typespb.Route{Dest: "10.1.0.0/16", Device: "eth0", Mtu: 1 << 20}, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) { expect(t, tt.ok, func() error { _, err := checkRoute(tt.wanted); return err }) })
	}
}

func TestCheckNeighbour(t *testing.T) {
	ip := address("10.0.0.1", "", typespb.IPFamily_v4)
	tests := map[string]struct {
		wanted *typespb.ARPNeighbor
		ok     bool
	}{
		"good":         {&typespb.ARPNeighbor{ToIPAddress: ip, Device: "eth0", Lladdr: goodMAC, State: 0x80}, true},
		"router":       {&typespb.ARPNeighbor{ToIPAddress: ip, Device: "eth0", Lladdr: goodMAC, State: 2, Flags: 0x80}, true},
		"no address":   {&typespb.ARPNeighbor{Device: "eth0", Lladdr: goodMAC}, false},
		"no device":    {&typespb.ARPNeighbor{ToIPAddress: ip, Lladdr: goodMAC}, false},
		"no MAC":       {&typespb.ARPNeighbor{ToIPAddress: ip, Device: "eth0"}, false},
		"failed state": {&typespb.ARPNeighbor{ToIPAddress: ip, Device: "eth0", Lladdr: goodMAC, State: 0x20}, false},
		"proxy":        {&typespb.ARPNeighbor{ToIPAddress: ip, Device: "eth0", Lladdr: goodMAC, Flags: 8}, false},
		"negative":     {&typespb.ARPNeighbor{ToIPAddress: ip, Device: "eth0", Lladdr: goodMAC, State: -1}, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) { expect(t, tt.ok, func() error { _, err := checkNeighbour(tt.wanted); return err }) })
	}
}

func expect(t *testing.T, ok bool, check func() error) {
	t.Helper()
	err := check()
	if ok && err != nil {
		t.Errorf("refused: %v", err)
	}
	if !ok && !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("error %v, want invalid argument", err)
	}
}

func FuzzCheck(f *testing.F) {
	f.Add("eth0", goodMAC, "10.0.0.2", "24", "10.0.0.0/8", int32(0), uint32(0))
	f.Fuzz(func(t *testing.T, name, mac, ip, mask, dest string, family int32, flags uint32) {
		a := address(ip, mask, typespb.IPFamily(family))
		c, err := checkCard(&typespb.Interface{Name: name, HwAddr: mac, IPAddresses: []*typespb.IPAddress{a}, RawFlags: flags})
		if err == nil && (c.name == "lo" || len(c.mac) != 6 || !c.addresses[0].IsValid()) {
			t.Errorf("accepted %+v", c)
		}
		r, err := checkRoute(&typespb.Route{Device: name, Dest: dest, Gateway: ip, Family: typespb.IPFamily(family), Flags: flags})
		if err == nil && (r.device == "lo" || !r.destination.IsValid() || r.gateway.IsValid() && r.gateway.Is4() != r.destination.Addr().Is4()) {
			t.Errorf("accepted %+v", r)
		}
	})
}
