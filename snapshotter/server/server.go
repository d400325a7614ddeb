package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/log"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
)

// stopTimeout bounds the wait for calls in progress when the server is told to end. containerd's own deadline for a
// proxy plugin is far longer, but systemd kills after its own.
const stopTimeout = 10 * time.Second

// Serve answers containerd on l until ctx ends, then lets calls in progress finish, closes l and returns nil. A call
// that does not finish within stopTimeout is cut off; the snapshotter's state bears that at any point.
func Serve(ctx context.Context, l net.Listener, sn snapshots.Snapshotter) error {
	srv := grpc.NewServer(
		grpc.ChainUnaryInterceptor(unaryErrors, notePlugin),
		grpc.ChainStreamInterceptor(streamErrors),
	)
	snapshotsapi.RegisterSnapshotsServer(srv, snapshotservice.FromSnapshotter(sn))

	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	select {
	case err := <-served:
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	drained := make(chan struct{})
	go func() {
		srv.GracefulStop()
		close(drained)
	}()
	select {
	case <-drained:
	case <-time.After(stopTimeout):
		log.G(ctx).Warn("calls in progress did not finish in time and are cut off")
		srv.Stop()
		<-drained
	}
	if err := <-served; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	}
	return nil
}

type pluginKey struct{}

// Plugin is the name by which containerd's configuration calls the snapshotter that a request is for; empty outside
// requests.
func Plugin(ctx context.Context) string {
	name, _ := ctx.Value(pluginKey{}).(string)
	return name
}

// WithPlugin makes ctx one of a request for the plugin with that name.
func WithPlugin(ctx context.Context, name string) context.Context {
	return context.WithValue(ctx, pluginKey{}, name)
}

func notePlugin(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	if named, ok := req.(interface{ GetSnapshotter() string }); ok {
		ctx = WithPlugin(ctx, named.GetSnapshotter())
	}
	return handler(ctx, req)
}

// unaryErrors is where errors become gRPC status. The service converts nearly all by itself, but not those of List.
func unaryErrors(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	resp, err := handler(ctx, req)
	return resp, toStatus(err)
}

func streamErrors(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	return toStatus(handler(srv, stream))
}

func toStatus(err error) error {
	if _, ok := status.FromError(err); ok {
		return err
	}
	return errgrpc.ToGRPC(err)
}
