package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/log"
	"github.com/containerd/ttrpc"
	"github.com/urfave/cli/v2"

	"github.com/coffer-project/coffer/guestpull/image"
	"github.com/coffer-project/coffer/guestpull/store"
	"github.com/coffer-project/coffer/proto/cdh"
)

const (
	defaultRoot = store.DefaultDir
	// stopLimit bounds the wait for pulls that were given up.
	stopLimit = 30 * time.Second
)

// serve answers until the context ends. Pulls under way are then given up and undone; what was pulled stays mounted, because
// containers run from it.
func serve(c *cli.Context) error {
	if c.Args().Present() {
		return usageError{fmt.Errorf("serve takes no arguments, got %q", c.Args().First())}
	}
	root, err := filepath.Abs(c.String("root"))
	if err != nil {
		return err
	}
	if err := unused(root); err != nil {
		return err
	}
	puller, err := newPuller(c, root, image.NewTracker())
	if err != nil {
		return err
	}
	s, err := newPullService(puller, filepath.Join(root, "scratch"))
	if err != nil {
		return err
	}
	server, err := ttrpc.NewServer(ttrpc.WithUnaryServerInterceptor(toStatus))
	if err != nil {
		return fmt.Errorf("make server: %w", err)
	}
	cdh.RegisterImagePullServiceService(server, s)
	listener, err := listen(c.Context, c.String("socket"))
	if err != nil {
		return err
	}
	stop := context.AfterFunc(c.Context, func() { server.Close() })
	defer stop()
	log.G(c.Context).WithField("socket", listener.Addr().String()).Info("serving image pulls")
	err = server.Serve(c.Context, listener)
	s.close()
	if err := s.idle(context.WithoutCancel(c.Context)); err != nil {
		return err
	}
	if err != nil && !errors.Is(err, ttrpc.ErrServerClosed) {
		return fmt.Errorf("serve: %w", err)
	}
	return nil
}

// listen takes the place of a service that is gone. FailedPrecondition: one still answers.
func listen(ctx context.Context, socket string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
		return nil, fmt.Errorf("make folder of socket: %w", err)
	}
	if conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket); err == nil {
		conn.Close()
		return nil, fmt.Errorf("another service answers on %s: %w", socket, errdefs.ErrFailedPrecondition)
	}
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove old socket: %w", err)
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "unix", socket)
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	return listener, nil
}

// toStatus is the one place where errors become statuses.
func toStatus(ctx context.Context, unmarshal ttrpc.Unmarshaler, _ *ttrpc.UnaryServerInfo, method ttrpc.Method) (any, error) {
	resp, err := method(ctx, unmarshal)
	return resp, errgrpc.ToGRPC(err)
}
