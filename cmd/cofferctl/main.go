// Command cofferctl is the user's tool: it encrypts images, builds guest images and talks to the key broker.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/urfave/cli/v2"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	app := &cli.App{
		Name:  "cofferctl",
		Usage: "prepare images, guests and keys for Coffer",
		Commands: []*cli.Command{
			guestCommand(),
			imageCommand(),
			initdataCommand(),
			kbsCommand(),
		},
	}
	if err := app.RunContext(ctx, flagsFirst(app, os.Args)); err != nil {
		fmt.Fprintln(os.Stderr, "cofferctl:", err)
		os.Exit(1)
	}
}
