package forward

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// patience bounds what should happen at once.
const patience = 20 * time.Second

// pair is a TCP connection's two ends.
func pair(t *testing.T) (one, two *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dialled, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []net.Conn{dialled, accepted} {
		t.Cleanup(func() { c.Close() })
		if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
	}
	return dialled.(*net.TCPConn), accepted.(*net.TCPConn)
}

// line is a client and a server with two relays between them, as they are on host and in guest.
type line struct {
	client, server *net.TCPConn
	stream         net.Conn // the host's end of what is between the relays
	ends           chan error
}

func connect(ctx context.Context, t *testing.T, halfIdle time.Duration) *line {
	t.Helper()
	l := &line{ends: make(chan error, 2)}
	var host, guest *net.TCPConn
	l.client, host = pair(t)
	l.server, guest = pair(t)
	near, far := net.Pipe()
	l.stream = near
	go func() { l.ends <- Relay(ctx, host, near, halfIdle) }()
	go func() { l.ends <- Relay(ctx, guest, far, halfIdle) }()
	return l
}

// end returns the errors of both relays.
func (l *line) end(t *testing.T) (all []error) {
	t.Helper()
	for range 2 {
		select {
		case err := <-l.ends:
			all = append(all, err)
		case <-time.After(patience):
			t.Fatal("a relay does not end")
		}
	}
	return all
}

func TestRelay(t *testing.T) {
	l := connect(t.Context(), t, time.Minute)
	question, answer := strings.Repeat("question ", 1<<17), strings.Repeat("answer ", 1<<17)
	go func() {
		_, _ = io.WriteString(l.client, question)
		_ = l.client.CloseWrite()
	}()
	if got, err := io.ReadAll(l.server); err != nil || string(got) != question {
		t.Fatalf("the server got %d bytes, %v", len(got), err)
	}
	// One direction is over. The other is not.
	go func() {
		_, _ = io.WriteString(l.server, answer)
		l.server.Close()
	}()
	if got, err := io.ReadAll(l.client); err != nil || string(got) != answer {
		t.Fatalf("the client got %d bytes, %v", len(got), err)
	}
	for _, err := range l.end(t) {
		if err != nil {
			t.Errorf("a relay ended with %v", err)
		}
	}
}

// TestRelayBreaks breaks a connection in several places; both ends must see a reset, and both relays end.
func TestRelayBreaks(t *testing.T) {
	for name, test := range map[string]struct {
		do             func(l *line, cancel func())
		client, server bool // who is left to see it
	}{
		"client resets":          {func(l *line, _ func()) { Reset(l.client) }, false, true},
		"server resets":          {func(l *line, _ func()) { Reset(l.server) }, true, false},
		"stream breaks":          {func(l *line, _ func()) { l.stream.Close() }, true, true},
		"context ends":           {func(_ *line, cancel func()) { cancel() }, true, true},
		"half closed and silent": {func(l *line, _ func()) { _ = l.client.CloseWrite() }, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			l := connect(ctx, t, 100*time.Millisecond)
			for _, c := range []*net.TCPConn{l.client, l.server} {
				if _, err := c.Write([]byte("x")); err != nil {
					t.Fatal(err)
				}
			}
			for _, c := range []*net.TCPConn{l.client, l.server} {
				if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
					t.Fatal(err)
				}
			}
			test.do(l, cancel)
			if test.client {
				if _, err := io.ReadAll(l.client); !errors.Is(err, unix.ECONNRESET) {
					t.Errorf("the client sees %v", err)
				}
			}
			if test.server {
				// The end of a half-closed direction comes before the reset.
				_, err := io.ReadAll(l.server)
				for deadline := time.Now().Add(patience); err == nil && time.Now().Before(deadline); {
					_, err = l.server.Write([]byte("x"))
				}
				if !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, unix.EPIPE) {
					t.Errorf("the server sees %v", err)
				}
			}
			for _, err := range l.end(t) {
				if err == nil {
					t.Error("a relay ended as if all were well")
				}
			}
		})
	}
}

// TestRelaySlow fills everything on the way to a server that does not read, and then reads it all.
func TestRelaySlow(t *testing.T) {
	l := connect(t.Context(), t, time.Minute)
	if err := l.client.SetWriteDeadline(time.Now().Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	written := 0
	for {
		n, err := l.client.Write(make([]byte, 64<<10))
		written += n
		if errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE) {
			t.Fatalf("a slow reader lost its connection: %v", err)
		}
		if err != nil {
			break // full
		}
	}
	if err := l.client.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.Copy(io.Discard, l.server); err != nil || got != int64(written) {
		t.Errorf("the server got %d bytes of %d, %v", got, written, err)
	}
}

func TestAskAndAnswer(t *testing.T) {
	for name, test := range map[string]struct {
		answer, wantErr error
	}{
		"open":    {nil, nil},
		"policy":  {status.Error(codes.PermissionDenied, "no"), errdefs.ErrPermissionDenied},
		"nobody":  {status.Error(codes.Unavailable, "nobody listens"), errdefs.ErrUnavailable},
		"crowded": {status.Error(codes.ResourceExhausted, "too many"), errdefs.ErrResourceExhausted},
	} {
		t.Run(name, func(t *testing.T) {
			host, guest := net.Pipe()
			defer host.Close()
			served := make(chan error, 1)
			go func() {
				request, err := ReadRequest(guest)
				if err == nil && request.GetPort() != 8080 {
					err = errors.New("not the port that was asked for")
				}
				served <- errors.Join(err, Answer(guest, test.answer))
			}()
			if err := Ask(host, 8080); !errors.Is(err, test.wantErr) {
				t.Errorf("got %v, want %v", err, test.wantErr)
			}
			if err := <-served; err != nil {
				t.Error(err)
			}
		})
	}
}

func FuzzReadRequest(f *testing.F) {
	var good bytes.Buffer
	_ = Ask(struct {
		io.Reader
		io.Writer
	}{strings.NewReader(""), &good}, 80)
	f.Add(good.Bytes())
	f.Add([]byte{0, 0, 0, 0})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 1})
	f.Fuzz(func(t *testing.T, raw []byte) {
		in := bytes.NewReader(raw)
		request, err := ReadRequest(in)
		if (err == nil) != (request != nil) {
			t.Fatalf("request %v, error %v", request, err)
		}
		if taken := len(raw) - in.Len(); taken > headerSize+maxMessage {
			t.Errorf("took %d bytes", taken)
		}
	})
}

func FuzzReadFrame(f *testing.F) {
	f.Add([]byte{0, 0, 0, 2, 'h', 'i', 0, 0, 0, 0})
	f.Add([]byte{0, 0, 0, 9, 'h', 'i'})
	f.Add([]byte{0xff, 0, 0, 0})
	f.Fuzz(func(t *testing.T, raw []byte) {
		in := bytes.NewReader(raw)
		buffer := make([]byte, 16)
		for {
			before := in.Len()
			n, err := readFrame(in, buffer)
			if err != nil {
				if in.Len() == before && before >= headerSize {
					t.Fatal("failed without reading")
				}
				return
			}
			if n > len(buffer) || before-in.Len() != headerSize+n {
				t.Fatalf("frame of %d bytes took %d", n, before-in.Len())
			}
		}
	})
}
