package forward

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coffer-project/coffer/integration/require"
	"github.com/coffer-project/coffer/proto/forward"
	"github.com/coffer-project/coffer/proto/mux"
	"github.com/coffer-project/coffer/shim/netns"
	"github.com/coffer-project/coffer/shim/netns/netnstest"
)

// patience bounds what should happen at once.
const patience = 20 * time.Second

// newPod makes a namespace with loopback, as CNI leaves it.
func newPod(t *testing.T) string {
	t.Helper()
	require.Root(t)
	pod := netnstest.New(t)
	err := netns.Do(pod, func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
	if err != nil {
		t.Fatal(err)
	}
	return pod
}

// guest plays the guest's half: it answers each stream and relays it to the server of the port.
type guest struct {
	servers map[uint16]func(*net.TCPConn)

	mu    sync.Mutex
	conns sync.WaitGroup
	asked []uint32
}

func (g *guest) dial(_ context.Context, port uint32) (net.Conn, error) {
	if port != mux.ForwardPort {
		return nil, fmt.Errorf("dialled port %d: %w", port, errdefs.ErrUnavailable)
	}
	host, inside, err := pair()
	if err != nil {
		return nil, err
	}
	g.conns.Go(func() { g.serve(inside) })
	return host, nil
}

func (g *guest) serve(stream net.Conn) {
	request, err := forward.ReadRequest(stream)
	if err != nil {
		stream.Close()
		return
	}
	g.mu.Lock()
	g.asked = append(g.asked, request.GetPort())
	g.mu.Unlock()
	server := g.servers[uint16(request.GetPort())]
	if server == nil {
		_ = forward.Answer(stream, status.Error(codes.Unavailable, "nobody listens"))
		stream.Close()
		return
	}
	if err := forward.Answer(stream, nil); err != nil {
		stream.Close()
		return
	}
	near, far, err := pair()
	if err != nil {
		stream.Close()
		return
	}
	g.conns.Go(func() { server(far.(*net.TCPConn)) })
	_ = forward.Relay(context.Background(), near.(*net.TCPConn), stream, time.Minute)
}

// pair is a TCP connection's two ends.
func pair() (net.Conn, net.Conn, error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, nil, err
	}
	defer l.Close()
	one, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		return nil, nil, err
	}
	two, err := l.Accept()
	return one, two, err
}

// greet says hello and hangs up.
func greet(c *net.TCPConn) {
	_, _ = io.WriteString(c, "hello")
	c.Close()
}

// echo reads to the end, and only then sends it all back.
func echo(c *net.TCPConn) {
	defer c.Close()
	all, err := io.ReadAll(c)
	if err == nil {
		_, _ = c.Write(all)
	}
}

func start(t *testing.T, pod string, g *guest) *Forwarder {
	t.Helper()
	f, err := Start(t.Context(), pod, g.dial)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		g.conns.Wait()
	})
	return f
}

func dial(pod, network, address string) (conn *net.TCPConn, err error) {
	err = netns.Do(pod, func() error {
		c, err := (&net.Dialer{Timeout: patience}).Dial(network, address)
		if err != nil {
			return err
		}
		conn = c.(*net.TCPConn)
		return conn.SetDeadline(time.Now().Add(patience))
	})
	return conn, err
}

func mustDial(t *testing.T, pod, network, address string) *net.TCPConn {
	t.Helper()
	conn, err := dial(pod, network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// read connects and reads to the end. A reset may come before connect(2) has returned.
func read(pod, network, address string) (string, error) {
	conn, err := dial(pod, network, address)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	got, err := io.ReadAll(conn)
	return string(got), err
}

func TestForward(t *testing.T) {
	pod := newPod(t)
	g := &guest{servers: map[uint16]func(*net.TCPConn){80: greet, 65535: greet}}
	start(t, pod, g)
	for name, test := range map[string]struct {
		network, address, want string
		wantErr                error
	}{
		"IPv4":             {"tcp4", "127.0.0.1:80", "hello", nil},
		"IPv6":             {"tcp6", "[::1]:80", "hello", nil},
		"other loopback":   {"tcp4", "127.1.2.3:80", "hello", nil},
		"last port":        {"tcp4", "127.0.0.1:65535", "hello", nil},
		"nobody in guest":  {"tcp4", "127.0.0.1:81", "", unix.ECONNRESET},
		"nobody in guest6": {"tcp6", "[::1]:81", "", unix.ECONNRESET},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := read(pod, test.network, test.address)
			if got != test.want || !errors.Is(err, test.wantErr) {
				t.Errorf("got %q, %v; want %q, %v", got, err, test.want, test.wantErr)
			}
		})
	}
	t.Run("other address", func(t *testing.T) {
		err := netns.Do(pod, func() error {
			lo, err := netlink.LinkByName("lo")
			if err != nil {
				return err
			}
			addr, _ := netlink.ParseAddr("10.1.2.3/32")
			return netlink.AddrAdd(lo, addr)
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := dial(pod, "tcp4", "10.1.2.3:80"); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("an address that is not loopback: %v", err)
		}
	})
	t.Run("other namespace", func(t *testing.T) {
		if _, err := dial(newPod(t), "tcp4", "127.0.0.1:80"); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("another pod's loopback: %v", err)
		}
	})
}

// TestHalfClose sends what fits into no buffer and ends the direction; the answer must come all the same.
func TestHalfClose(t *testing.T) {
	pod := newPod(t)
	start(t, pod, &guest{servers: map[uint16]func(*net.TCPConn){7: echo}})
	data := make([]byte, 32<<20)
	if _, err := rand.Read(data); err != nil {
		t.Fatal(err)
	}
	conn := mustDial(t, pod, "tcp4", "127.0.0.1:7")
	if _, err := conn.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(conn); err != nil || !bytes.Equal(got, data) {
		t.Errorf("got %d bytes of %d, %v", len(got), len(data), err)
	}
}

// TestReset lets one end give up and looks at the other.
func TestReset(t *testing.T) {
	pod := newPod(t)
	seen := make(chan error, 1)
	start(t, pod, &guest{servers: map[uint16]func(*net.TCPConn){
		1: func(c *net.TCPConn) { forward.Reset(c) },
		2: func(c *net.TCPConn) {
			_, _ = io.WriteString(c, "ready")
			_, err := io.Copy(io.Discard, c)
			seen <- err
			c.Close()
		},
	}})
	t.Run("by the server", func(t *testing.T) {
		if _, err := read(pod, "tcp4", "127.0.0.1:1"); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("the client sees %v", err)
		}
	})
	t.Run("by the client", func(t *testing.T) {
		conn := mustDial(t, pod, "tcp4", "127.0.0.1:2")
		if _, err := io.ReadFull(conn, make([]byte, len("ready"))); err != nil {
			t.Fatal(err)
		}
		forward.Reset(conn)
		select {
		case err := <-seen:
			if !errors.Is(err, unix.ECONNRESET) {
				t.Errorf("the server sees %v", err)
			}
		case <-time.After(patience):
			t.Error("the server sees nothing")
		}
	})
}

// TestLimit opens more connections than a pod may have.
func TestLimit(t *testing.T) {
	pod := newPod(t)
	open := func(c *net.TCPConn) {
		_, _ = io.WriteString(c, "x")
		_, _ = io.Copy(io.Discard, c)
		c.Close()
	}
	start(t, pod, &guest{servers: map[uint16]func(*net.TCPConn){1: open}})
	for range maxConnections {
		conn := mustDial(t, pod, "tcp4", "127.0.0.1:1")
		if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := read(pod, "tcp4", "127.0.0.1:1"); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("one too many: %v", err)
	}
}

// TestClose ends with a connection under way; then the loopback is as if nothing had been there.
func TestClose(t *testing.T) {
	pod := newPod(t)
	open := func(c *net.TCPConn) {
		_, _ = io.WriteString(c, "x")
		_, _ = io.Copy(io.Discard, c)
		c.Close()
	}
	f := start(t, pod, &guest{servers: map[uint16]func(*net.TCPConn){1: open}})
	conn := mustDial(t, pod, "tcp4", "127.0.0.1:1")
	if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("the connection under way: %v", err)
	}
	if _, err := dial(pod, "tcp4", "127.0.0.1:1"); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("a new connection: %v", err)
	}
	again := start(t, pod, &guest{servers: map[uint16]func(*net.TCPConn){1: greet}})
	if got, err := read(pod, "tcp4", "127.0.0.1:1"); got != "hello" || err != nil {
		t.Errorf("after another start: %q, %v", got, err)
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
}

func TestStartFails(t *testing.T) {
	require.Root(t)
	before := openFiles(t)
	if _, err := Start(t.Context(), "/run/netns/coffer-no-such", nil); !errdefs.IsNotFound(err) {
		t.Errorf("no such namespace: %v", err)
	}
	if after := openFiles(t); after > before {
		t.Errorf("%d files open, %d before", after, before)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(files)
}
