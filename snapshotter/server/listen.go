package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
)

// probeTimeout bounds the question whether somebody still answers on a socket that is in our way.
const probeTimeout = 2 * time.Second

// Listen makes the unix socket, for root only. A socket that nobody answers on, left by a killed process, is replaced.
// A live one, or a file that is no socket, is refused with errdefs.ErrAlreadyExists: two snapshotters on one address
// would each see half of what containerd asks.
func Listen(ctx context.Context, address string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(address), 0o700); err != nil {
		return nil, fmt.Errorf("create socket directory: %w", err)
	}
	if err := removeStale(ctx, address); err != nil {
		return nil, err
	}
	var config net.ListenConfig
	l, err := config.Listen(ctx, "unix", address)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", address, err)
	}
	if err := os.Chmod(address, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("protect socket: %w", err), l.Close())
	}
	return l, nil
}

func removeStale(ctx context.Context, address string) error {
	info, err := os.Lstat(address)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look at socket: %w", err)
	}
	if info.Mode().Type() != os.ModeSocket {
		return fmt.Errorf("%s is not a socket, so it is not removed: move it away or configure another address: %w", address, errdefs.ErrAlreadyExists)
	}
	dialer := net.Dialer{Timeout: probeTimeout}
	conn, err := dialer.DialContext(ctx, "unix", address)
	switch {
	case err == nil:
		return errors.Join(fmt.Errorf("another process answers on %s: stop it or configure another address: %w", address, errdefs.ErrAlreadyExists), conn.Close())
	case errors.Is(err, os.ErrNotExist):
		return nil
	case !errors.Is(err, syscall.ECONNREFUSED):
		// Full backlog, time-out: somebody has it, only not in a state to answer.
		return fmt.Errorf("%s is in use (%w): stop its owner or configure another address: %w", address, err, errdefs.ErrAlreadyExists)
	}
	log.G(ctx).WithField("path", address).Info("replacing the socket of a process that is gone")
	if err := os.Remove(address); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove stale socket: %w", err)
	}
	return nil
}
