package transport

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/hashicorp/yamux"

	"github.com/coffer-project/coffer/proto/mux"
)

// patience bounds what should happen at once.
const patience = 10 * time.Second

// host starts a session on a board and returns its host's end; the error of the session comes on the channel.
func host(t *testing.T, b *switchboard) (*yamux.Session, net.Conn, <-chan error) {
	t.Helper()
	guestEnd, hostEnd := net.Pipe()
	ended := make(chan error, 1)
	go func() { ended <- b.serve(t.Context(), guestEnd) }()
	session, err := yamux.Client(hostEnd, mux.Config())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { session.Close() })
	return session, hostEnd, ended
}

func open(t *testing.T, session *yamux.Session, port uint32) (net.Conn, error) {
	t.Helper()
	stream, err := session.Open()
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if err := mux.WriteHeader(stream, port); err != nil {
		t.Fatal(err)
	}
	return stream, mux.ReadReply(stream)
}

func listen(t *testing.T, b *switchboard, port uint32) net.Listener {
	t.Helper()
	l, err := b.listen(port)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// greet answers each connection with the text.
func greet(l net.Listener, text string) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		_, _ = io.WriteString(conn, text)
		conn.Close()
	}
}

func TestPorts(t *testing.T) {
	b := newSwitchboard()
	one, two := listen(t, b, 1), listen(t, b, 2)
	go greet(one, "one")
	go greet(two, "two")
	session, _, _ := host(t, b)
	for port, want := range map[uint32]string{1: "one", 2: "two"} {
		stream, err := open(t, session, port)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(stream); string(got) != want {
			t.Errorf("port %d: %q, %v", port, got, err)
		}
	}
	if _, err := open(t, session, 3); !errors.Is(err, mux.ErrNoListener) {
		t.Errorf("port without listener: %v", err)
	}
	if _, err := b.listen(1); !errdefs.IsAlreadyExists(err) {
		t.Errorf("second listener: %v", err)
	}
	if err := one.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := one.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept on a closed listener: %v", err)
	}
	if _, err := open(t, session, 1); !errors.Is(err, mux.ErrNoListener) {
		t.Errorf("port of a closed listener: %v", err)
	}
	go greet(listen(t, b, 1), "again")
	stream, err := open(t, session, 1)
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := io.ReadAll(stream); string(got) != "again" {
		t.Errorf("new listener: %q", got)
	}
}

func TestStreamWithoutHeader(t *testing.T) {
	b := newSwitchboard()
	go greet(listen(t, b, 1), "one")
	session, _, _ := host(t, b)
	stream, err := session.Open()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Write([]byte("GET / HTTP/1.1\r\n")); err != nil {
		t.Fatal(err)
	}
	if err := stream.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(stream); len(got) != 0 || err != nil {
		t.Errorf("got %q, %v; want the end of the stream", got, err)
	}
	if _, err := open(t, session, 1); err != nil {
		t.Errorf("the session did not survive: %v", err)
	}
}

// TestNextHost ends sessions in several ways, with a stream that nobody has accepted, and starts another on the same
// listeners.
func TestNextHost(t *testing.T) {
	tests := map[string]func(session *yamux.Session, raw net.Conn){
		"closed":  func(session *yamux.Session, _ net.Conn) { session.Close() },
		"cut":     func(_ *yamux.Session, raw net.Conn) { raw.Close() },
		"garbage": func(_ *yamux.Session, raw net.Conn) { _, _ = raw.Write([]byte("garbage garbage garbage")) },
	}
	for name, leave := range tests {
		t.Run(name, func(t *testing.T) {
			b := newSwitchboard()
			l := listen(t, b, 1)
			session, raw, ended := host(t, b)
			if _, err := open(t, session, 1); err != nil {
				t.Fatal(err)
			}
			leave(session, raw)
			select {
			case err := <-ended:
				if err == nil {
					t.Error("the session ended without a reason")
				}
			case <-time.After(patience):
				t.Fatal("the session did not end")
			}
			go greet(l, "hello")
			next, _, _ := host(t, b)
			stream, err := open(t, next, 1)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(stream); string(got) != "hello" {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
}

func TestShut(t *testing.T) {
	errDevice := errors.New("device is gone")
	b := newSwitchboard()
	l := listen(t, b, 1)
	b.shut(errDevice)
	if _, err := l.Accept(); !errors.Is(err, errDevice) {
		t.Errorf("accept: %v", err)
	}
	if _, err := b.listen(2); !errors.Is(err, errDevice) {
		t.Errorf("listen: %v", err)
	}
}

func TestFindPort(t *testing.T) {
	root := t.TempDir()
	for port, name := range map[string]string{"vport1p1": "org.other\n", "vport2p3": mux.PortName + "\n"} {
		dir := filepath.Join(root, "class/virtio-ports", port)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "name"), []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	fs := sysfs{root: root, dev: "/dev"}
	if got, err := fs.findPort(mux.PortName); got != "/dev/vport2p3" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := fs.findPort("org.none"); !errdefs.IsNotFound(err) {
		t.Errorf("a port that is not there: %v", err)
	}
}

func TestFind(t *testing.T) {
	tests := map[string]struct {
		cid     uint32
		err     error
		want    string
		wantErr error
	}{
		"vsock":               {cid: 3, want: "vsock"},
		"vsock, no device":    {cid: anyCID, wantErr: errdefs.ErrNotFound},
		"no vsock":            {err: os.ErrNotExist, wantErr: errdefs.ErrNotFound},
		"says what it missed": {err: os.ErrNotExist, wantErr: context.DeadlineExceeded},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
			defer cancel()
			fs := sysfs{root: t.TempDir(), dev: "/dev", cid: func() (uint32, error) { return tt.cid, tt.err }}
			got, err := waitForChannel(ctx, fs)
			if !errors.Is(err, tt.wantErr) {
				t.Fatalf("error %v, want %v", err, tt.wantErr)
			}
			if tt.wantErr == nil && got.Kind() != tt.want {
				t.Errorf("got %s", got.Kind())
			}
		})
	}
}
