package main

import (
	"context"
	"errors"
	"os"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/urfave/cli/v2"

	"github.com/coffer-project/coffer/node/metrics"
	"github.com/coffer-project/coffer/node/pods"
	shim "github.com/coffer-project/coffer/shim/config"
	snapshotter "github.com/coffer-project/coffer/snapshotter/config"
)

func metricsCommand() *cli.Command {
	return &cli.Command{
		Name:  "metrics",
		Usage: "serve this node's figures to Prometheus",
		Flags: []cli.Flag{
			shimFlag,
			&cli.StringFlag{Name: "snapshotter-config", Usage: "the snapshotter's configuration `FILE`; without it " + snapshotter.DefaultPath + ", if there"},
			&cli.StringFlag{Name: "listen", Value: "127.0.0.1:9464", Usage: "`ADDRESS` as host:port, or unix:/path; whoever reaches it sees the names of pods"},
			&cli.StringFlag{Name: "containerd", Usage: "containerd's `SOCKET`; without it containerd_address of the snapshotter's configuration"},
		},
		Action: serveMetrics,
	}
}

func serveMetrics(c *cli.Context) (retErr error) {
	if c.Args().Present() {
		return errors.New("usage: cofferctl metrics [--listen ADDRESS]")
	}
	shimConfig, err := shim.Load(c.String("config"))
	if err != nil {
		return err
	}
	snapshotterConfig, err := snapshotter.Load(c.String("snapshotter-config"))
	if err != nil {
		return err
	}
	registry := prometheus.NewRegistry()
	snapshotters, err := metrics.NewSnapshotters(registry, snapshotterConfig.Sockets())
	if err != nil {
		return err
	}
	defer func() { retErr = errors.Join(retErr, snapshotters.Close()) }()
	registry.MustRegister(
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		metrics.Pods{ReadFile: os.ReadFile, List: func(ctx context.Context) ([]pods.Pod, error) {
			return pods.List(ctx, shimConfig.StateDir)
		}},
	)
	events := metrics.NewEvents(registry)
	address := c.String("containerd")
	if address == "" {
		address = snapshotterConfig.ContainerdAddress
	}
	listener, err := metrics.Listen(c.Context, c.String("listen"))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(c.Context)
	followed := make(chan error, 1)
	go func() { followed <- events.Follow(ctx, address) }()
	defer func() {
		cancel()
		retErr = errors.Join(retErr, <-followed)
	}()
	// Without a service manager there is nobody to tell.
	_, _ = daemon.SdNotify(false, daemon.SdNotifyReady)
	return metrics.Serve(ctx, listener, registry)
}
