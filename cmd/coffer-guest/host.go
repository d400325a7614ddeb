package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"

	"github.com/coffer-project/coffer/guestpull/attest"
	"github.com/coffer-project/coffer/guestpull/container/cgroup"
	"github.com/coffer-project/coffer/guestpull/container/reap"
	"github.com/coffer-project/coffer/guestpull/gpu"
	"github.com/coffer-project/coffer/guestpull/image"
	"github.com/coffer-project/coffer/guestpull/scratch"
	"github.com/coffer-project/coffer/guestpull/server"
)

// serveHost serves the agent protocol on a socket of an ordinary machine, as root: for development and tests.
func serveHost(args []string) error {
	flags := flag.NewFlagSet("coffer-guest", flag.ContinueOnError)
	listen := flags.String("listen", "", "unix `socket` to serve on")
	base := flags.String("base", "", "`folder` for containers, in place of /run/kata-containers")
	runc := flags.String("runc", "/usr/bin/runc", "the runc `program`")
	measured := flags.String("initdata", "", "measured document, a toml `file`")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *listen == "" || *base == "" || flags.NArg() > 0 {
		return errors.New("not the first process of a machine; for development give --listen SOCKET and --base FOLDER")
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := reap.Serve(ctx); err != nil {
		return err
	}
	s, err := hostSettings(*base, *runc, *measured)
	if err != nil {
		return err
	}
	none := func(context.Context) error { return nil } // to wait for: this machine has booted long ago
	if s.platform, err = attest.Detect(ctx, os.DirFS("/"), none); err != nil {
		return err
	}
	document, _, err := readMeasured(s.initdata)
	if err != nil {
		return err
	}
	forger := func(context.Context) (attest.Platform, error) {
		return nil, fmt.Errorf("a forged SNP processor is for VMs only: %w", errdefs.ErrFailedPrecondition)
	}
	if s.platform, err = attest.Substitute(ctx, s.platform, document, forger); err != nil {
		return err
	}
	if err := document.CheckTEE(s.platform.Kind()); err != nil {
		return err
	}
	if s.policy, err = newPolicy(ctx, document); err != nil {
		return err
	}
	images, err := newImages(ctx, s)
	if err != nil {
		return err
	}
	srv, err := assemble(s, images)
	if err != nil {
		return err
	}
	l, err := net.Listen("unix", *listen)
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { _ = srv.Close() })
	if err := srv.Serve(ctx, l); !errors.Is(err, ttrpc.ErrServerClosed) {
		return err
	}
	return nil
}

// hostSettings are those of a development machine. Everything is below base, so that the machine's own files stay as they are.
func hostSettings(base, runcPath, measured string) (settings, error) {
	s := settings{
		base:       base,
		state:      filepath.Join(base, ".state"),
		runc:       runcPath,
		resolvConf: filepath.Join(base, "resolv.conf"),
		cgroups:    cgroup.Default,
		place:      scratch.NewPlace(),
		secrets:    newLateSecrets(),
		gpus:       gpu.New(time.Second),
		complete:   func(context.Context) error { return nil },
		phases:     func() []server.Phase { return nil },
		pulls:      image.NewTracker(),
		pullLimit:  20 * time.Minute,
	}
	s.place.Set("", nil)
	s.gpus.Refuse(fmt.Errorf("a development machine gives no passed-through devices: %w", errdefs.ErrNotImplemented))
	if measured == "" {
		return s, nil
	}
	data, err := os.ReadFile(measured)
	if err != nil {
		return s, fmt.Errorf("read measured document: %w", err)
	}
	s.initdata = data
	return s, nil
}
