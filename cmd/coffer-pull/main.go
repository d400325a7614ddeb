// Command coffer-pull is the guest's image puller alone: for trying an image without a guest, and as a service for other
// agents.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/containerd/log"
	"github.com/urfave/cli/v2"

	// A guest has no certificate store of its own.
	_ "golang.org/x/crypto/x509roots/fallback"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := app().RunContext(ctx, os.Args); err != nil {
		fmt.Fprintln(os.Stderr, "coffer-pull:", err)
		os.Exit(1)
	}
}

func app() *cli.App {
	return &cli.App{
		Name:  "coffer-pull",
		Usage: "pull, verify, decrypt and unpack images",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "log-level", Usage: "trace, debug, info, warn or error", Value: "warn"},
		},
		Before: func(c *cli.Context) error { return log.SetLevel(c.String("log-level")) },
		Commands: []*cli.Command{
			{
				Name:      "pull",
				Usage:     "unpack an image to layer folders and say what it took",
				ArgsUsage: "REF",
				Flags: append([]cli.Flag{
					&cli.StringFlag{Name: "digest", Usage: "the manifest that the reference must name"},
					&cli.StringFlag{Name: "platform", Usage: "like linux/amd64 (default: this machine's)"},
					&cli.BoolFlag{Name: "json", Usage: "print the report as JSON"},
				}, pullerFlags()...),
				Action: pull,
			},
			{
				Name:  "serve",
				Usage: "serve the image pull service of the Confidential Data Hub on a socket",
				Flags: append([]cli.Flag{
					&cli.StringFlag{Name: "socket", Usage: "unix socket to listen on", Value: "/run/confidential-containers/cdh.sock"},
				}, pullerFlags()...),
				Action: serve,
			},
		},
	}
}
