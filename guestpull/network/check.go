package network

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"strconv"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/proto/lazyregexp"
	typespb "github.com/coffer-project/coffer/proto/types"
)

// Limits on one request, well above what a pod has.
const (
	maxAddresses  = 64
	maxRoutes     = 1024
	maxNeighbours = 1024

	minMTU = 68 // of IPv4; the smallest that the kernel takes
	maxMTU = 65535
)

// namePattern is what a card may be called: a subset of what the kernel takes, at most 15 characters.
var namePattern = lazyregexp.New(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,14}$`)

// loopback is the one card that no request may name.
const loopback = "lo"

func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}

func checkName(name string) error {
	if !namePattern.MatchString(name) || name == loopback {
		return invalid("card name %q", name)
	}
	return nil
}

// checkMAC accepts an Ethernet address of a single card.
func checkMAC(text string) (net.HardwareAddr, error) {
	mac, err := net.ParseMAC(text)
	if err != nil || len(mac) != 6 || mac[0]&1 != 0 || bytes.Equal(mac, make([]byte, 6)) {
		return nil, invalid("hardware address %q", text)
	}
	return mac, nil
}

// checkIP accepts an address that a host can have.
func checkIP(text string, family typespb.IPFamily) (netip.Addr, error) {
	ip, err := netip.ParseAddr(text)
	if err != nil || ip.Zone() != "" || ip.Is4In6() || ip.IsUnspecified() || ip.IsMulticast() || ip.IsLoopback() {
		return netip.Addr{}, invalid("IP address %q", text)
	}
	if err := checkFamily(ip, family); err != nil {
		return netip.Addr{}, err
	}
	return ip, nil
}

func checkFamily(ip netip.Addr, family typespb.IPFamily) error {
	if want := typespb.IPFamily_v4; ip.Is4() != (family == want) || family > typespb.IPFamily_v6 || family < want {
		return invalid("IP address %s of family %s", ip, family)
	}
	return nil
}

// checkAddress accepts an address with its prefix length.
func checkAddress(a *typespb.IPAddress) (netip.Prefix, error) {
	ip, err := checkIP(a.GetAddress(), a.GetFamily())
	if err != nil {
		return netip.Prefix{}, err
	}
	bits, err := strconv.ParseUint(a.GetMask(), 10, 8)
	if err != nil || bits == 0 || int(bits) > ip.BitLen() {
		return netip.Prefix{}, invalid("prefix length %q of %s", a.GetMask(), ip)
	}
	return netip.PrefixFrom(ip, int(bits)), nil
}

// card is a checked request for one network card.
type card struct {
	mac       net.HardwareAddr
	name      string
	mtu       int // 0: leave it
	addresses []netip.Prefix
	noARP     bool
}

func checkCard(wanted *typespb.Interface) (*card, error) {
	mac, err := checkMAC(wanted.GetHwAddr())
	if err != nil {
		return nil, err
	}
	c := &card{mac: mac, name: wanted.GetName(), noARP: wanted.GetRawFlags()&unix.IFF_NOARP != 0}
	if c.name == "" {
		c.name = wanted.GetDevice()
	}
	if err := checkName(c.name); err != nil {
		return nil, err
	}
	if unknown := wanted.GetRawFlags() &^ unix.IFF_NOARP; unknown != 0 {
		return nil, invalid("flags %#x of card %s", unknown, c.name)
	}
	if mtu := wanted.GetMtu(); mtu != 0 && (mtu < minMTU || mtu > maxMTU) {
		return nil, invalid("MTU %d of card %s", mtu, c.name)
	}
	c.mtu = int(wanted.GetMtu())
	if len(wanted.GetIPAddresses()) > maxAddresses {
		return nil, invalid("%d addresses for card %s", len(wanted.GetIPAddresses()), c.name)
	}
	for _, a := range wanted.GetIPAddresses() {
		prefix, err := checkAddress(a)
		if err != nil {
			return nil, err
		}
		c.addresses = append(c.addresses, prefix)
	}
	return c, nil
}

// route is a checked request for one route.
type route struct {
	destination netip.Prefix
	gateway     netip.Addr // zero: on the link itself
	source      netip.Addr // zero: the kernel's choice
	device      string
	scope       uint8
	onLink      bool
	mtu         int // 0: the card's
}

// hopFlags are the flags that the kernel reports for a next hop; of these only "on link" is a wish, the others are a state.
const hopFlags = unix.RTNH_F_DEAD | unix.RTNH_F_PERVASIVE | unix.RTNH_F_ONLINK | unix.RTNH_F_OFFLOAD |
	unix.RTNH_F_LINKDOWN | unix.RTNH_F_UNRESOLVED | unix.RTNH_F_TRAP

func checkRoute(wanted *typespb.Route) (route, error) {
	r := route{device: wanted.GetDevice(), onLink: wanted.GetFlags()&unix.RTNH_F_ONLINK != 0}
	if err := checkName(r.device); err != nil {
		return route{}, err
	}
	var err error
	if r.destination, err = checkDestination(wanted); err != nil {
		return route{}, err
	}
	if wanted.GetGateway() != "" {
		if r.gateway, err = checkIP(wanted.GetGateway(), wanted.GetFamily()); err != nil {
			return route{}, err
		}
	}
	if wanted.GetSource() != "" {
		if r.source, err = checkIP(wanted.GetSource(), wanted.GetFamily()); err != nil {
			return route{}, err
		}
	}
	switch wanted.GetScope() {
	case unix.RT_SCOPE_UNIVERSE, unix.RT_SCOPE_LINK, unix.RT_SCOPE_HOST:
		r.scope = uint8(wanted.GetScope())
	default:
		return route{}, invalid("scope %d of the route to %s", wanted.GetScope(), r.destination)
	}
	if unknown := wanted.GetFlags() &^ hopFlags; unknown != 0 {
		return route{}, invalid("flags %#x of the route to %s", unknown, r.destination)
	}
	if mtu := wanted.GetMtu(); mtu != 0 && (mtu < minMTU || mtu > maxMTU) {
		return route{}, invalid("MTU %d of the route to %s", mtu, r.destination)
	}
	r.mtu = int(wanted.GetMtu())
	return r, nil
}

// checkDestination accepts a network, or a single address; empty is the default route of the family.
func checkDestination(wanted *typespb.Route) (netip.Prefix, error) {
	text := wanted.GetDest()
	if text == "" {
		if wanted.GetFamily() == typespb.IPFamily_v6 {
			return netip.PrefixFrom(netip.IPv6Unspecified(), 0), nil
		}
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0), checkFamily(netip.IPv4Unspecified(), wanted.GetFamily())
	}
	prefix, err := netip.ParsePrefix(text)
	if err != nil {
		ip, ipErr := netip.ParseAddr(text)
		if ipErr != nil || ip.Zone() != "" {
			return netip.Prefix{}, invalid("destination %q", text)
		}
		prefix = netip.PrefixFrom(ip, ip.BitLen())
	}
	ip := prefix.Addr()
	if prefix != prefix.Masked() || ip.Is4In6() || ip.IsLoopback() {
		return netip.Prefix{}, invalid("destination %q", text)
	}
	return prefix, checkFamily(ip, wanted.GetFamily())
}

// neighbour is a checked request for one fixed neighbour.
type neighbour struct {
	ip     netip.Addr
	mac    net.HardwareAddr
	device string
	router bool
}

// neighbourStates are the states of an entry that the host may have copied: known, and fixed.
const neighbourStates = unix.NUD_REACHABLE | unix.NUD_STALE | unix.NUD_DELAY | unix.NUD_PROBE | unix.NUD_NOARP | unix.NUD_PERMANENT

func checkNeighbour(wanted *typespb.ARPNeighbor) (neighbour, error) {
	n := neighbour{device: wanted.GetDevice(), router: wanted.GetFlags()&unix.NTF_ROUTER != 0}
	if err := checkName(n.device); err != nil {
		return neighbour{}, err
	}
	var err error
	if n.ip, err = checkIP(wanted.GetToIPAddress().GetAddress(), wanted.GetToIPAddress().GetFamily()); err != nil {
		return neighbour{}, err
	}
	if n.mac, err = checkMAC(wanted.GetLladdr()); err != nil {
		return neighbour{}, err
	}
	if wanted.GetState()&^neighbourStates != 0 || wanted.GetFlags()&^unix.NTF_ROUTER != 0 {
		return neighbour{}, invalid("state %#x, flags %#x of neighbour %s", wanted.GetState(), wanted.GetFlags(), n.ip)
	}
	return n, nil
}
