package transport

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/log"
	"golang.org/x/sys/unix"
)

// serial serves one virtio serial port for as long as ctx lives.
type serial struct {
	node  string
	board *switchboard

	start sync.Once
	ctx   context.Context // the channel's own life: there is no call that could carry it
}

func newSerial(ctx context.Context, node string) *Transport {
	s := &serial{node: node, board: newSwitchboard(), ctx: ctx}
	return &Transport{kind: "serial", listen: s.listen}
}

// listen registers the port. The first listener also starts the service, so that an early caller from the host waits in
// the channel instead of being told that nobody listens.
func (s *serial) listen(port uint32) (net.Listener, error) {
	l, err := s.board.listen(port)
	if err != nil {
		return nil, err
	}
	s.start.Do(func() { go s.run() })
	return l, nil
}

// run serves one host after the other. It ends with ctx, or with an error of the device, which every listener then
// returns.
func (s *serial) run() {
	last := none
	for {
		var err error
		last, err = s.serveOne(last)
		if s.ctx.Err() != nil {
			err = net.ErrClosed
		}
		if err != nil {
			s.board.shut(err)
			return
		}
	}
}

// ending is how the session before ended.
type ending int

const (
	none   ending = iota // there was none
	hungUp               // the host hung up
	broken               // otherwise
)

// serveOne waits for a host and serves it until it is gone. The port is closed and opened between hosts, which drops
// whatever the last one left in it.
//
// Nothing marks where one host's bytes end and the next one's begin, and the guest cannot hang up. A host that follows
// another so closely that it is there before the guest waits for it may have spoken to the other's session, or into the
// port that was then closed, and would wait for ever. Such a host is told that its session is void, and has to come
// again.
func (s *serial) serveOne(last ending) (ending, error) {
	// Not blocking: then the Go runtime polls it, and Close ends a pending read.
	port, err := os.OpenFile(s.node, os.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return broken, fmt.Errorf("open control channel: %w", err)
	}
	defer port.Close()
	waited, err := waitForPeer(s.ctx, port)
	if err != nil {
		return broken, fmt.Errorf("wait for the host on the control channel: %w", err)
	}
	if last == broken || last == hungUp && !waited {
		if err := sayVoid(port); err != nil {
			return broken, fmt.Errorf("write to the control channel: %w", err)
		}
	}
	log.G(s.ctx).Debug("host connected to the control channel")
	watched := &hangupReader{File: port}
	err = s.board.serve(s.ctx, watched)
	log.G(s.ctx).WithError(err).WithField("hung_up", watched.hungUp.Load()).Debug("host left the control channel")
	if watched.hungUp.Load() {
		return hungUp, nil
	}
	return broken, nil
}

// goAway is yamux's frame that ends a session with a protocol error: version 0, type 3, no flags, stream 0, code 1.
var goAway = binary.BigEndian.AppendUint32([]byte{0, 3, 0, 0, 0, 0, 0, 0}, 1)

// sayVoid tells the host that its session is over. A host that is gone, or reads nothing, does not hold it up.
func sayVoid(port *os.File) error {
	if err := port.SetWriteDeadline(time.Now().Add(time.Second)); err != nil {
		return err
	}
	if _, err := port.Write(goAway); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	return port.SetWriteDeadline(time.Time{})
}

// hangupReader notes that the host hung up, which reads as end of file.
type hangupReader struct {
	*os.File
	hungUp atomic.Bool
}

// Read implements io.Reader.
func (r *hangupReader) Read(p []byte) (int, error) {
	n, err := r.File.Read(p)
	if errors.Is(err, io.EOF) {
		r.hungUp.Store(true)
	}
	return n, err
}

// waitForPeer returns when the port no longer reports a hang-up, and whether it ever did.
//
// poll(2) cannot wait for that: a hang-up is always reported. An edge-triggered epoll is told of each change instead.
func waitForPeer(ctx context.Context, port *os.File) (waited bool, err error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return false, fmt.Errorf("create epoll: %w", err)
	}
	defer unix.Close(epoll)
	stop, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return false, fmt.Errorf("create eventfd: %w", err)
	}
	defer unix.Close(stop)
	// The raw connection keeps the file non-blocking, which Fd would not.
	raw, err := port.SyscallConn()
	if err != nil {
		return false, err
	}
	controlErr := raw.Control(func(fd uintptr) { waited, err = waitNoHangup(ctx, epoll, stop, int(fd)) })
	return waited, errors.Join(controlErr, err)
}

func waitNoHangup(ctx context.Context, epoll, stop, port int) (waited bool, err error) {
	for _, fd := range []int{stop, port} {
		event := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLHUP | unix.EPOLLET, Fd: int32(fd)}
		if err := unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, fd, &event); err != nil {
			return false, fmt.Errorf("watch the port: %w", err)
		}
	}
	// The callback must be over before the descriptors are closed and their numbers used again.
	over := make(chan struct{})
	cancelled := context.AfterFunc(ctx, func() {
		defer close(over)
		_, _ = unix.Write(stop, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	})
	defer func() {
		if !cancelled() {
			<-over
		}
	}()
	var got [2]unix.EpollEvent
	for ; ctx.Err() == nil; waited = true {
		gone, err := hangup(port)
		if err != nil || !gone {
			return waited, err
		}
		if !waited {
			log.G(ctx).Debug("waiting for a host on the control channel")
		}
		if _, err := unix.EpollWait(epoll, got[:], -1); err != nil && !errors.Is(err, unix.EINTR) {
			return waited, fmt.Errorf("wait for the port: %w", err)
		}
	}
	return waited, ctx.Err()
}

// hangup tells whether no host is connected.
func hangup(port int) (bool, error) {
	state := []unix.PollFd{{Fd: int32(port), Events: unix.POLLOUT}}
	for {
		_, err := unix.Poll(state, 0)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return false, fmt.Errorf("poll the port: %w", err)
		case state[0].Revents&(unix.POLLNVAL|unix.POLLERR) != 0:
			return false, fmt.Errorf("poll the port: %w", unix.EIO)
		}
		return state[0].Revents&unix.POLLHUP != 0, nil
	}
}
