package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/log"
	"github.com/containerd/ttrpc"
	"github.com/urfave/cli/v2"

	"github.com/coffer-project/coffer/guestpull/container/rootfs"
	"github.com/coffer-project/coffer/guestpull/image"
	"github.com/coffer-project/coffer/proto/cdh"
)

// maxPath bounds a bundle's path in bytes.
const maxPath = 1024

// pullService pulls for an agent that knows the Confidential Data Hub. Each bundle is a container of its own; it keeps its
// layers until the process ends, as the service has no call to give them back.
type pullService struct {
	puller  *image.Puller
	scratch string
}

// PullImage unpacks an image and mounts its root file system, writable, at rootfs in the bundle.
func (s *pullService) PullImage(ctx context.Context, req *cdh.ImagePullRequest) (_ *cdh.ImagePullResponse, retErr error) {
	bundle := filepath.Clean(req.GetBundlePath())
	if len(bundle) > maxPath || !filepath.IsAbs(bundle) {
		return nil, fmt.Errorf("bundle path is not absolute, or longer than %d bytes: %w", maxPath, errdefs.ErrInvalidArgument)
	}
	target := filepath.Join(bundle, "rootfs")
	if _, err := os.Lstat(target); err == nil {
		return nil, fmt.Errorf("bundle %s has a root file system: %w", bundle, errdefs.ErrAlreadyExists)
	}
	img, err := s.puller.Pull(ctx, image.Request{ContainerID: bundle, Reference: req.GetImageUrl()})
	if err != nil {
		return nil, err
	}
	defer func() {
		if retErr != nil {
			retErr = errors.Join(retErr, s.puller.Release(context.WithoutCancel(ctx), bundle))
		}
	}()
	scratch, err := os.MkdirTemp(s.scratch, "rootfs-")
	if err != nil {
		return nil, fmt.Errorf("make scratch folder: %w", err)
	}
	if err := os.MkdirAll(bundle, 0o755); err != nil {
		return nil, errors.Join(fmt.Errorf("make bundle: %w", err), os.RemoveAll(scratch))
	}
	if err := rootfs.Overlay(img.Layers, scratch, target, rootfs.Owner{}); err != nil {
		return nil, errors.Join(err, os.RemoveAll(scratch))
	}
	return &cdh.ImagePullResponse{ManifestDigest: img.ManifestDigest.String()}, nil
}

func serve(c *cli.Context) error {
	puller, err := newPuller(c)
	if err != nil {
		return err
	}
	s := &pullService{puller: puller, scratch: filepath.Join(c.String("root"), "scratch")}
	if err := os.MkdirAll(s.scratch, 0o700); err != nil {
		return fmt.Errorf("make scratch folder: %w", err)
	}
	server, err := ttrpc.NewServer(ttrpc.WithUnaryServerInterceptor(toStatus))
	if err != nil {
		return fmt.Errorf("make server: %w", err)
	}
	cdh.RegisterImagePullServiceService(server, s)
	socket := c.String("socket")
	if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
		return fmt.Errorf("make folder of socket: %w", err)
	}
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove old socket: %w", err)
	}
	l, err := (&net.ListenConfig{}).Listen(c.Context, "unix", socket)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	stop := context.AfterFunc(c.Context, func() { server.Close() })
	defer stop()
	log.G(c.Context).WithField("socket", socket).Info("serving image pulls")
	if err := server.Serve(c.Context, l); err != nil && !errors.Is(err, ttrpc.ErrServerClosed) {
		return fmt.Errorf("serve: %w", err)
	}
	return nil
}

// toStatus is the one place where errors become statuses.
func toStatus(ctx context.Context, unmarshal ttrpc.Unmarshaler, _ *ttrpc.UnaryServerInfo, method ttrpc.Method) (any, error) {
	resp, err := method(ctx, unmarshal)
	return resp, errgrpc.ToGRPC(err)
}
