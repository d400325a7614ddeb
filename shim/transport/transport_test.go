package transport

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/hashicorp/yamux"
	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/proto/mux"
)

const testPort = 7

// socketPair is a unix socket pair: unlike net.Pipe it has a buffer, as the serial port has.
func socketPair(t *testing.T) (host, guest net.Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	conns := make([]net.Conn, 2)
	for i, fd := range fds {
		file := os.NewFile(uintptr(fd), "pair")
		if conns[i], err = net.FileConn(file); err != nil {
			t.Fatal(err)
		}
		file.Close()
		t.Cleanup(func() { conns[i].Close() })
	}
	return conns[0], conns[1]
}

// peer is a guest that echoes on testPort once listening is closed, and has no other listener.
type peer struct {
	session   *yamux.Session
	listening chan struct{}
}

func startPeer(t *testing.T, guest net.Conn) *peer {
	t.Helper()
	session, err := yamux.Server(guest, mux.Config())
	if err != nil {
		t.Fatal(err)
	}
	p := &peer{session: session, listening: make(chan struct{})}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			stream, err := session.AcceptStream()
			if err != nil {
				return
			}
			wg.Go(func() { p.serve(stream) })
		}
	})
	t.Cleanup(func() { session.Close(); wg.Wait() })
	return p
}

func (p *peer) serve(stream net.Conn) {
	defer stream.Close()
	port, err := mux.ReadHeader(stream)
	if err != nil {
		return
	}
	accepted := false
	select {
	case <-p.listening:
		accepted = port == testPort
	default:
	}
	if mux.WriteReply(stream, accepted) == nil && accepted {
		_, _ = io.Copy(stream, stream)
	}
}

func newSerial(t *testing.T, host net.Conn) *Serial {
	t.Helper()
	s, err := NewSerial(host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func echo(t *testing.T, conn net.Conn, size int) {
	t.Helper()
	sent := make([]byte, size)
	rand.Read(sent)
	failed := make(chan error, 1)
	go func() { _, err := conn.Write(sent); failed <- err }()
	got := make([]byte, size)
	if _, err := io.ReadFull(conn, got); err != nil {
		t.Fatal(err)
	}
	if err := <-failed; err != nil || !bytes.Equal(sent, got) {
		t.Errorf("echo of %d bytes: write error %v, equal %t", size, err, bytes.Equal(sent, got))
	}
}

func TestSerialDialBeforeGuest(t *testing.T) {
	host, guest := socketPair(t)
	s := newSerial(t, host)
	dialled := make(chan error, 1)
	var conn net.Conn
	go func() {
		var err error
		conn, err = s.Dial(t.Context(), testPort)
		dialled <- err
	}()
	// The guest appears later, and may refuse the port at first.
	p := startPeer(t, guest)
	close(p.listening)
	if err := <-dialled; err != nil {
		t.Fatal(err)
	}
	echo(t, conn, 3<<20)
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
}

func TestSerialWaitsForListener(t *testing.T) {
	host, guest := socketPair(t)
	s := newSerial(t, host)
	p := startPeer(t, guest)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := s.Dial(ctx, testPort); !errors.Is(err, context.DeadlineExceeded) || errdefs.IsUnavailable(err) {
		t.Fatalf("no listener: %v", err)
	}
	close(p.listening)
	conn, err := s.Dial(t.Context(), testPort)
	if err != nil {
		t.Fatal(err)
	}
	echo(t, conn, 100)
}

func TestSerialManyStreams(t *testing.T) {
	host, guest := socketPair(t)
	s := newSerial(t, host)
	close(startPeer(t, guest).listening)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			conn, err := s.Dial(t.Context(), testPort)
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			echo(t, conn, 200_000)
		})
	}
	wg.Wait()
}

func TestSerialDeadline(t *testing.T) {
	host, _ := socketPair(t) // nobody ever reads
	s := newSerial(t, host)
	for name, timeout := range map[string]time.Duration{"some": 20 * time.Millisecond, "none": 0} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), timeout)
			defer cancel()
			if _, err := s.Dial(ctx, testPort); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestSerialBreaks(t *testing.T) {
	host, guest := socketPair(t)
	s := newSerial(t, host)
	close(startPeer(t, guest).listening)
	conn, err := s.Dial(t.Context(), testPort)
	if err != nil {
		t.Fatal(err)
	}
	reading := make(chan error, 1)
	go func() { _, err := conn.Read(make([]byte, 1)); reading <- err }()
	guest.Close()
	if err := <-reading; !errdefs.IsUnavailable(err) {
		t.Errorf("pending read: %v", err)
	}
	<-s.Done()
	if _, err := conn.Write([]byte("x")); !errdefs.IsUnavailable(err) {
		t.Errorf("write: %v", err)
	}
	if _, err := s.Dial(t.Context(), testPort); !errdefs.IsUnavailable(err) {
		t.Errorf("dial: %v", err)
	}
}

func TestSerialGarbage(t *testing.T) {
	host, guest := socketPair(t)
	s := newSerial(t, host)
	dialled := make(chan error, 1)
	go func() { _, err := s.Dial(t.Context(), testPort); dialled <- err }()
	if _, err := guest.Write(bytes.Repeat([]byte("garbage "), 100)); err != nil {
		t.Fatal(err)
	}
	if err := <-dialled; !errdefs.IsUnavailable(err) {
		t.Errorf("got %v", err)
	}
}

func TestConnCloseEndsRead(t *testing.T) {
	host, guest := socketPair(t)
	s := newSerial(t, host)
	close(startPeer(t, guest).listening)
	conn, err := s.Dial(t.Context(), testPort)
	if err != nil {
		t.Fatal(err)
	}
	reading := make(chan error, 1)
	go func() { _, err := conn.Read(make([]byte, 1)); reading <- err }()
	conn.Close()
	if err := <-reading; !errors.Is(err, net.ErrClosed) {
		t.Errorf("pending read: %v", err)
	}
}

func TestTakeCID(t *testing.T) {
	sequence := func(n uint32) uint32 { return n - 1 }
	cases := map[string]struct {
		errs    []error
		want    uint32
		wantErr error
	}{
		"free":      {[]error{nil}, 1<<31 - 1, nil},
		"taken":     {[]error{unix.EADDRINUSE, unix.EADDRINUSE, nil}, 1<<31 - 1, nil},
		"forbidden": {[]error{unix.EPERM}, 0, unix.EPERM},
		"full":      {nil, 0, unix.EADDRINUSE},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			calls := 0
			cid, err := takeCID(sequence, func(cid uint64) error {
				if cid < firstCID || cid >= 1<<31 {
					t.Errorf("cid %d", cid)
				}
				calls++
				if tc.errs == nil {
					return unix.EADDRINUSE
				}
				return tc.errs[calls-1]
			})
			if cid != tc.want || !errors.Is(err, tc.wantErr) {
				t.Errorf("got %d, %v", cid, err)
			}
		})
	}
}

func TestVsockDial(t *testing.T) {
	host, _ := socketPair(t)
	var attempts int
	v := &Vsock{cid: 42, dial: func(_ context.Context, cid, port uint32) (net.Conn, error) {
		attempts++
		switch {
		case cid != 42 || port != testPort:
			return nil, unix.EINVAL
		case attempts < 3:
			return nil, os.NewSyscallError("connect", unix.ECONNRESET)
		}
		return host, nil
	}}
	if conn, err := v.Dial(t.Context(), testPort); err != nil || conn != host || attempts != 3 {
		t.Errorf("got %v after %d attempts", err, attempts)
	}
	if _, err := v.Dial(t.Context(), 8); !errors.Is(err, unix.EINVAL) {
		t.Errorf("a final error: %v", err)
	}
	v.dial = func(context.Context, uint32, uint32) (net.Conn, error) { return nil, unix.ENODEV }
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if _, err := v.Dial(ctx, testPort); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "no such device") {
		t.Errorf("a guest that never comes: %v", err)
	}
	v.Close()
	if _, err := v.Dial(t.Context(), testPort); !errdefs.IsUnavailable(err) {
		t.Errorf("after close: %v", err)
	}
}

func TestOpenVhostMissing(t *testing.T) {
	if _, err := openVhost("/nonexistent/vhost-vsock"); !errdefs.IsFailedPrecondition(err) || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}
