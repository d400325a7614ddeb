package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/moby/sys/mountinfo"

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

	mu      sync.Mutex
	bundles map[string]bool // in work
	calls   sync.WaitGroup
	closing chan struct{} // closed by close
	closed  bool
}

// newPullService takes over a folder for the writable parts of root file systems. What is in it belongs to nobody.
func newPullService(puller *image.Puller, scratch string) (*pullService, error) {
	if err := os.RemoveAll(scratch); err != nil {
		return nil, fmt.Errorf("clear scratch folder: %w", err)
	}
	if err := os.MkdirAll(scratch, 0o700); err != nil {
		return nil, fmt.Errorf("make scratch folder: %w", err)
	}
	return &pullService{puller: puller, scratch: scratch, bundles: map[string]bool{}, closing: make(chan struct{})}, nil
}

// unused fails with FailedPrecondition while root file systems of an earlier service are mounted: to begin anew would take
// the files away below containers that run.
func unused(root string) error {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("overlay"))
	if err != nil {
		return fmt.Errorf("look for mounts: %w", err)
	}
	for _, m := range mounts {
		if strings.Contains(m.VFSOptions, "="+root+"/") {
			return fmt.Errorf("the image at %s was pulled by an earlier service to %s; unmount it, or use another --root: %w",
				m.Mountpoint, root, errdefs.ErrFailedPrecondition)
		}
	}
	return nil
}

// PullImage unpacks an image and mounts its root file system, writable, at rootfs in the bundle. After an error nothing is
// left. AlreadyExists: the bundle has one, or gets one.
func (s *pullService) PullImage(ctx context.Context, req *cdh.ImagePullRequest) (*cdh.ImagePullResponse, error) {
	bundle := req.GetBundlePath()
	if len(bundle) > maxPath || !filepath.IsAbs(bundle) {
		return nil, fmt.Errorf("bundle path is not absolute, or longer than %d bytes: %w", maxPath, errdefs.ErrInvalidArgument)
	}
	bundle = filepath.Clean(bundle)
	if err := s.begin(bundle); err != nil {
		return nil, err
	}
	defer s.calls.Done()
	defer s.forget(bundle)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-s.closing:
			cancel()
		case <-ctx.Done():
		}
	}()
	img, err := s.puller.Pull(ctx, image.Request{ContainerID: bundle, Reference: req.GetImageUrl()})
	if err != nil {
		return nil, err
	}
	if err := s.mount(img, bundle); err != nil {
		return nil, errors.Join(err, s.puller.Release(context.WithoutCancel(ctx), bundle))
	}
	log.G(ctx).WithField("bundle", bundle).WithField("digest", img.ManifestDigest).Info("image mounted")
	return &cdh.ImagePullResponse{ManifestDigest: img.ManifestDigest.String()}, nil
}

// mount stacks the layers at rootfs in the bundle, which it makes where it is missing.
func (s *pullService) mount(img *image.Image, bundle string) error {
	target := filepath.Join(bundle, "rootfs")
	_, err := os.Lstat(bundle)
	missing := errors.Is(err, os.ErrNotExist)
	if err := os.MkdirAll(bundle, 0o755); err != nil {
		return fmt.Errorf("make bundle: %w", err)
	}
	scratch, err := os.MkdirTemp(s.scratch, "rootfs-")
	if err != nil {
		return fmt.Errorf("make scratch folder: %w", err)
	}
	if err = rootfs.Overlay(img.Layers, scratch, target, rootfs.Owner{}); err == nil {
		return nil
	}
	// Nothing is mounted, so nothing but empty folders can be at the target.
	err = errors.Join(err, os.RemoveAll(scratch))
	if fault := os.Remove(target); !errors.Is(fault, os.ErrNotExist) {
		err = errors.Join(err, fault)
	}
	if missing {
		err = errors.Join(err, os.Remove(bundle))
	}
	return err
}

// begin takes a bundle. Unavailable: the service ends.
func (s *pullService) begin(bundle string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return fmt.Errorf("the service ends: %w", errdefs.ErrUnavailable)
	}
	if _, err := os.Lstat(filepath.Join(bundle, "rootfs")); err == nil || s.bundles[bundle] {
		return fmt.Errorf("bundle %s has a root file system, or gets one: %w", bundle, errdefs.ErrAlreadyExists)
	}
	s.bundles[bundle] = true
	s.calls.Add(1)
	return nil
}

func (s *pullService) forget(bundle string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.bundles, bundle)
}

// close gives up all pulls under way and refuses new ones. It may be repeated.
func (s *pullService) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.closed = true
		close(s.closing)
	}
}

// idle waits for pulls under way.
func (s *pullService) idle(ctx context.Context) error {
	ended := make(chan struct{})
	go func() {
		s.calls.Wait()
		close(ended)
	}()
	ctx, cancel := context.WithTimeout(ctx, stopLimit)
	defer cancel()
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("pulls do not end: %w", ctx.Err())
	}
}
