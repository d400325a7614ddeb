package transport

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"sync/atomic"
	"unsafe"

	"github.com/containerd/errdefs"
	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"
)

// VhostDevice is the device by which a VM monitor offers vsock.
const VhostDevice = "/dev/vhost-vsock"

const (
	// setGuestCID is VHOST_VSOCK_SET_GUEST_CID, _IOW(0xaf, 0x60, __u64).
	setGuestCID = 0x4008af60
	// firstCID is the lowest number that a guest may have; 0 to 2 mean hypervisor, local and host.
	firstCID = 3
	// cidAttempts bounds the search: with 2^31 numbers even one collision is rare.
	cidAttempts = 32
)

// VsockAvailable tells whether a VM on this machine can have vsock; the error says why not.
func VsockAvailable() error {
	device, err := openVhost(VhostDevice)
	if err != nil {
		return err
	}
	return device.Close()
}

func openVhost(path string) (*os.File, error) {
	device, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: vsock: %w (load the kernel module vhost_vsock, or set hypervisor.transport to serial)",
			errdefs.ErrFailedPrecondition, err)
	}
	return device, nil
}

// Vsock is a Dialer over AF_VSOCK.
type Vsock struct {
	cid    uint32
	closed atomic.Bool
	dial   func(ctx context.Context, cid, port uint32) (net.Conn, error)
}

var _ Dialer = (*Vsock)(nil)

// NewVsock takes a context id that no other VM on this machine has. The id is bound to the device file that is returned
// with it, which the VM monitor must inherit; the caller closes its own copy after that.
func NewVsock() (*Vsock, *os.File, error) {
	device, err := openVhost(VhostDevice)
	if err != nil {
		return nil, nil, err
	}
	cid, err := takeCID(rand.Uint32N, func(cid uint64) error {
		//nolint:gosec // the call takes a pointer, and golang.org/x/sys/unix has no form of it for 64 bits
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, device.Fd(), setGuestCID, uintptr(unsafe.Pointer(&cid)))
		if errno != 0 {
			return errno
		}
		return nil
	})
	if err != nil {
		device.Close()
		return nil, nil, err
	}
	return &Vsock{cid: cid, dial: dialVsock}, device, nil
}

// takeCID tries random ids until the kernel accepts one.
func takeCID(random func(n uint32) uint32, take func(cid uint64) error) (uint32, error) {
	for range cidAttempts {
		cid := firstCID + random(1<<31-firstCID)
		err := take(uint64(cid))
		if err == nil {
			return cid, nil
		}
		if !errors.Is(err, unix.EADDRINUSE) {
			return 0, fmt.Errorf("set vsock context id %d: %w", cid, err)
		}
	}
	return 0, fmt.Errorf("find a free vsock context id: %d attempts: %w", cidAttempts, unix.EADDRINUSE)
}

func dialVsock(ctx context.Context, cid, port uint32) (net.Conn, error) {
	// A typed nil must not become a non-nil net.Conn.
	conn, err := vsock.DialContext(ctx, cid, port, nil)
	if err != nil {
		return nil, err
	}
	return conn, nil
}

// CID is the guest's context id.
func (v *Vsock) CID() uint32 { return v.cid }

// Close implements Dialer. Streams live on until the VM ends.
func (v *Vsock) Close() error {
	v.closed.Store(true)
	return nil
}

// Dial implements Dialer. Until the guest's driver and listener are there, the kernel refuses in several ways; each is
// tried again.
func (v *Vsock) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	var conn net.Conn
	err := retry(ctx, func() (again bool, err error) {
		if v.closed.Load() {
			return false, errChannelGone
		}
		conn, err = v.dial(ctx, v.cid, port)
		return notUpYet(err), err
	})
	if err != nil {
		return nil, fmt.Errorf("dial guest port %d on vsock %d: %w", port, v.cid, err)
	}
	return conn, nil
}

func notUpYet(err error) bool {
	for _, errno := range []error{unix.ECONNREFUSED, unix.ECONNRESET, unix.ENODEV, unix.ETIMEDOUT, unix.EHOSTUNREACH} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}
