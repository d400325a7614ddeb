package server

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/guestpull/policy"
	"github.com/coffer-project/coffer/proto/forward"
)

// patience bounds what should happen at once.
const patience = 20 * time.Second

// serveForwards serves the streams of a socket, whose path it returns, until the test ends; all its work must end then.
func serveForwards(t *testing.T, engine Policy) string {
	t.Helper()
	f := &fake{}
	srv, err := New(Options{
		Containers: f, Pulls: fakePulls{f}, Sandbox: fakePod{f}, Network: f, Files: f, Policy: engine,
		Complete: func(context.Context) error { return nil }, BootPhases: func() []Phase { return nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "forward")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		srv.ServeForwards(ctx, l)
	}()
	t.Cleanup(func() {
		cancel()
		select {
		case <-ended:
		case <-time.After(patience):
			t.Error("connections live on")
		}
	})
	return path
}

func openStream(t *testing.T, path string) net.Conn {
	t.Helper()
	stream, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stream.Close() })
	if err := stream.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return stream
}

// listenTCP greets each connection on a free port of the address, and hangs up.
func listenTCP(t *testing.T, network, address string) uint16 {
	t.Helper()
	l, err := net.Listen(network, net.JoinHostPort(address, "0"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(conn, "hello")
			conn.Close()
		}
	}()
	return uint16(l.Addr().(*net.TCPAddr).Port)
}

func TestForwards(t *testing.T) {
	v4, v6 := listenTCP(t, "tcp4", "127.0.0.1"), listenTCP(t, "tcp6", "::1")
	nobody, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := uint16(nobody.Addr().(*net.TCPAddr).Port)
	nobody.Close()
	for name, test := range map[string]struct {
		engine Policy
		port   uint16
		want   error
	}{
		"IPv4":           {policy.NewBuiltin(), v4, nil},
		"IPv6":           {policy.NewBuiltin(), v6, nil},
		"nobody listens": {policy.NewBuiltin(), closed, errdefs.ErrUnavailable},
		"no port":        {policy.NewBuiltin(), 0, errdefs.ErrPermissionDenied},
		"denied":         {policy.NewStrict(), v4, errdefs.ErrPermissionDenied},
	} {
		t.Run(name, func(t *testing.T) {
			stream := openStream(t, serveForwards(t, test.engine))
			if err := forward.Ask(stream, test.port); !errors.Is(err, test.want) {
				t.Fatalf("got %v, want %v", err, test.want)
			}
			// One frame with the greeting and one with the end, or, when refused, nothing.
			want := []byte("\x00\x00\x00\x05hello\x00\x00\x00\x00")
			if test.want != nil {
				want = nil
			} else if _, err := stream.Write(make([]byte, 4)); err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(stream); !slices.Equal(got, want) || err != nil {
				t.Errorf("got %q, %v; want %q", got, err, want)
			}
		})
	}
}

func TestForwardsGarbage(t *testing.T) {
	path := serveForwards(t, policy.NewBuiltin())
	stream := openStream(t, path)
	if _, err := io.WriteString(stream, "GET "); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(stream)
	if len(answer) == 0 || err != nil {
		t.Errorf("garbage was answered with %q, %v", answer, err)
	}
	if err := forward.Ask(openStream(t, path), listenTCP(t, "tcp4", "127.0.0.1")); err != nil {
		t.Errorf("the next stream: %v", err)
	}
}

// TestForwardsCrowd opens more connections than the guest takes, and one more after one has ended.
func TestForwardsCrowd(t *testing.T) {
	path := serveForwards(t, policy.NewBuiltin())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := uint16(l.Addr().(*net.TCPAddr).Port)
	streams := make([]net.Conn, maxForwards)
	for i := range streams {
		streams[i] = openStream(t, path)
		if err := forward.Ask(streams[i], port); err != nil {
			t.Fatal(err)
		}
	}
	if err := forward.Ask(openStream(t, path), port); !errdefs.IsResourceExhausted(err) {
		t.Errorf("one too many: %v", err)
	}
	// Those that never ask keep no place for long, and soon get none.
	silent := make([]net.Conn, maxRefusals)
	for i := range silent {
		silent[i] = openStream(t, path)
	}
	if n, err := openStream(t, path).Read(make([]byte, 1)); err == nil {
		t.Errorf("read %d bytes of a stream that should be hung up", n)
	} else if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("a stream beyond all limits is kept")
	}
	for _, stream := range silent {
		stream.Close()
	}
	streams[0].Close()
	// The guest sees all that in its own time, and refuses or hangs up until then.
	for end := time.Now().Add(patience); ; {
		err := forward.Ask(openStream(t, path), port)
		if err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("after one has ended: %v", err)
		}
	}
}
