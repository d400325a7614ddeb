// Package network sets up the guest's network cards, addresses, routes and neighbours as the shim asks.
//
// What the shim asks is the host's word. The host carries every packet anyway, so the network is not a secret and not
// trusted; yet a request must not do more than it says. Each one is rebuilt from checked values: cards are found by
// hardware address, names and addresses follow strict patterns, loopback is never touched, and a value that is not
// understood is refused with errdefs.ErrInvalidArgument before anything is changed.
package network
