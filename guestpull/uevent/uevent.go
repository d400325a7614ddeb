// Package uevent tells when the kernel has changed anything about a device.
package uevent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// kernelGroup is the multicast group of the kernel's own device events.
const kernelGroup = 1

// Events is a subscription to the kernel's device events.
type Events struct{ socket *os.File }

// Open subscribes. Subscribe before the first look, so that a device that appears in between is not missed. The caller
// calls Close.
func Open() (*Events, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, fmt.Errorf("open device event socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: kernelGroup}); err != nil {
		return nil, errors.Join(fmt.Errorf("subscribe to device events: %w", err), unix.Close(fd))
	}
	return &Events{socket: os.NewFile(uintptr(fd), "uevent")}, nil
}

// Wait returns after at least one event, or with ctx's error. What the event says does not matter: the caller looks
// for itself.
func (e *Events) Wait(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = e.socket.SetReadDeadline(time.Unix(0, 0)) })
	defer stop()
	var event [8 << 10]byte
	_, err := e.socket.Read(event[:])
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, unix.ENOBUFS):
		return nil // events were lost, so there were events
	}
	return err
}

// Close ends the subscription.
func (e *Events) Close() error { return e.socket.Close() }
