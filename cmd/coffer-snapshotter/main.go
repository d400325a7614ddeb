// Command coffer-snapshotter is the containerd proxy plugin that leaves images to the guest.
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"syscall"

	"github.com/containerd/log"
	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/urfave/cli/v2"
	"golang.org/x/sync/errgroup"

	"github.com/coffer-project/coffer/snapshotter"
	"github.com/coffer-project/coffer/snapshotter/config"
	"github.com/coffer-project/coffer/snapshotter/server"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := app().RunContext(ctx, os.Args); err != nil {
		fmt.Fprintln(os.Stderr, "coffer-snapshotter:", err)
		stop()
		os.Exit(1)
	}
}

func app() *cli.App {
	path := &cli.StringFlag{Name: "config", Aliases: []string{"c"}, Usage: "configuration `FILE`; without it " + config.DefaultPath + ", if there"}
	return &cli.App{
		Name:            "coffer-snapshotter",
		Usage:           "hand image references to guests instead of unpacking images on the host",
		Flags:           []cli.Flag{path},
		HideHelpCommand: true,
		Action:          func(c *cli.Context) error { return run(c.Context, c.Args(), c.String("config")) },
		Commands: []*cli.Command{{
			Name:  "config",
			Usage: "print or check the configuration",
			Subcommands: []*cli.Command{
				{
					Name: "default", Usage: "print the complete commented default",
					Action: func(c *cli.Context) error { _, err := fmt.Fprint(c.App.Writer, config.DefaultText()); return err },
				},
				{
					Name: "validate", Usage: "check a file and report every fault", ArgsUsage: "[FILE]",
					Action: func(c *cli.Context) error { return validate(c, c.String("config")) },
				},
			},
		}},
	}
}

func validate(c *cli.Context, path string) error {
	if c.Args().Len() > 0 {
		path = c.Args().First()
	}
	if _, err := config.Load(path); err != nil {
		return err
	}
	_, err := fmt.Fprintln(c.App.Writer, "the configuration is valid")
	return err
}

func run(ctx context.Context, args cli.Args, path string) (retErr error) {
	if args.Present() {
		return fmt.Errorf("unknown command %q, see --help", args.First())
	}
	conf, err := config.Load(path)
	if err != nil {
		return err
	}
	if err := errors.Join(log.SetLevel(conf.Log.Level), log.SetFormat(log.OutputFormat(conf.Log.Format))); err != nil {
		return err
	}
	sn, err := conf.Open(ctx)
	if err != nil {
		return err
	}
	defer func() { retErr = errors.Join(retErr, sn.Close()) }()
	served := map[string]*snapshotter.Snapshotter{conf.Address: sn}
	second, err := conf.OpenNodeDefault(ctx)
	if err != nil {
		return fmt.Errorf("node_default: %w", err)
	}
	if second != nil {
		defer func() { retErr = errors.Join(retErr, second.Close()) }()
		served[conf.NodeDefault.Address] = second
	}
	return serve(ctx, served)
}

// serve answers on every address until ctx ends or one of them fails.
func serve(ctx context.Context, snapshotters map[string]*snapshotter.Snapshotter) error {
	listeners := map[string]net.Listener{}
	for address := range snapshotters {
		l, err := server.Listen(ctx, address)
		if err != nil {
			for _, other := range listeners {
				err = errors.Join(err, other.Close())
			}
			return err
		}
		listeners[address] = l
	}
	context.AfterFunc(ctx, func() { _, _ = daemon.SdNotify(false, daemon.SdNotifyStopping) })
	// The sockets accept already; what comes before Serve waits in their backlogs.
	if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
		log.G(ctx).WithError(err).Warn("systemd was not told that the service is ready")
	}
	group, ctx := errgroup.WithContext(ctx)
	for address, l := range listeners {
		log.G(ctx).WithField("path", address).Info("serving snapshots")
		group.Go(func() error { return server.Serve(ctx, l, snapshotters[address]) })
	}
	return group.Wait()
}
