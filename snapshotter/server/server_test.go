package server

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

func listen(t *testing.T, address string) net.Listener {
	t.Helper()
	l, err := Listen(t.Context(), address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func TestListen(t *testing.T) {
	tests := map[string]struct {
		before  func(t *testing.T, address string)
		wantErr error
	}{
		"nothing there": {before: func(*testing.T, string) {}},
		"socket of a killed process": {before: func(t *testing.T, address string) {
			l, err := net.Listen("unix", address)
			if err != nil {
				t.Fatal(err)
			}
			l.(*net.UnixListener).SetUnlinkOnClose(false)
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
		}},
		"live socket": {
			before:  func(t *testing.T, address string) { listen(t, address) },
			wantErr: errdefs.ErrAlreadyExists,
		},
		"another file": {
			before: func(t *testing.T, address string) {
				if err := os.WriteFile(address, []byte("precious"), 0o600); err != nil {
					t.Fatal(err)
				}
			},
			wantErr: errdefs.ErrAlreadyExists,
		},
		"link to a socket": {
			before: func(t *testing.T, address string) {
				if err := os.Symlink("/nowhere", address); err != nil {
					t.Fatal(err)
				}
			},
			wantErr: errdefs.ErrAlreadyExists,
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			address := filepath.Join(t.TempDir(), "sock")
			tc.before(t, address)
			l, err := Listen(t.Context(), address)
			if !errors.Is(err, tc.wantErr) {
				t.Fatalf("got %v, want %v", err, tc.wantErr)
			}
			if err != nil {
				if _, err := os.Lstat(address); err != nil {
					t.Fatalf("what was refused is gone: %v", err)
				}
				return
			}
			defer l.Close()
			info, err := os.Stat(address)
			if err != nil || info.Mode().Perm() != 0o600 {
				t.Fatalf("socket %v, %v; want it for root only", info.Mode(), err)
			}
			conn, err := net.Dial("unix", address)
			if err != nil {
				t.Fatal(err)
			}
			_ = conn.Close()
		})
	}
}

// answering is a snapshotter that gives one error to everything and lets a test hold a call.
type answering struct {
	snapshots.Snapshotter
	err     error
	plugin  *string
	entered chan struct{}
	release chan struct{}
}

func (a answering) Mounts(ctx context.Context, _ string) ([]mount.Mount, error) {
	if a.plugin != nil {
		*a.plugin = Plugin(ctx)
	}
	if a.entered != nil {
		close(a.entered)
		<-a.release
	}
	return nil, a.err
}

func (a answering) Walk(context.Context, snapshots.WalkFunc, ...string) error { return a.err }

// serve starts a server and returns a client of it and what ends it.
func serve(t *testing.T, sn snapshots.Snapshotter) (client snapshots.Snapshotter, stop func(), served <-chan error) {
	t.Helper()
	address := filepath.Join(t.TempDir(), "sock")
	l := listen(t, address)
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	end := make(chan error, 1)
	go func() { end <- Serve(ctx, l, sn) }()
	conn, err := grpc.NewClient("unix://"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "coffer"), cancel, end
}

func TestErrorsKeepTheirClass(t *testing.T) {
	for name, want := range map[string]error{
		"not found":           errdefs.ErrNotFound,
		"failed precondition": errdefs.ErrFailedPrecondition,
		"already exists":      errdefs.ErrAlreadyExists,
	} {
		t.Run(name, func(t *testing.T) {
			client, _, _ := serve(t, answering{err: want})
			if _, err := client.Mounts(t.Context(), "x"); !errors.Is(err, want) {
				t.Errorf("a call gave %v", err)
			}
			err := client.Walk(t.Context(), func(context.Context, snapshots.Info) error { return nil })
			if !errors.Is(err, want) {
				t.Errorf("a stream gave %v", err)
			}
		})
	}
}

func TestRequestsNameThePlugin(t *testing.T) {
	var got string
	client, _, _ := serve(t, answering{plugin: &got})
	if _, err := client.Mounts(t.Context(), "x"); err != nil || got != "coffer" {
		t.Fatalf("the request is for plugin %q, %v", got, err)
	}
	if name := Plugin(t.Context()); name != "" {
		t.Errorf("outside requests the plugin is %q", name)
	}
}

func TestStopLetsCallsFinish(t *testing.T) {
	a := answering{entered: make(chan struct{}), release: make(chan struct{})}
	client, stop, served := serve(t, a)
	answer := make(chan error, 1)
	go func() {
		_, err := client.Mounts(t.Context(), "x")
		answer <- err
	}()
	<-a.entered
	stop()
	select {
	case err := <-served:
		t.Fatalf("the server ended with a call in progress: %v", err)
	default:
	}
	close(a.release)
	if err := <-answer; err != nil {
		t.Errorf("the call in progress got %v", err)
	}
	if err := <-served; err != nil {
		t.Errorf("the server ended with %v", err)
	}
}
