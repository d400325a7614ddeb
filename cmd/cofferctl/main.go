// Command cofferctl is the user's tool: it encrypts images, builds and measures guest images and talks to the key broker. Commands for
// a node's admin it hands on to coffer-node, the host's half.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/urfave/cli/v2"

	"github.com/coffer-project/coffer/cmd/internal/args"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	app := &cli.App{
		Name:  "cofferctl",
		Usage: "prepare images, guests and keys for Coffer",
		Commands: append([]*cli.Command{
			guestCommand(),
			imageCommand(),
			initdataCommand(),
			kbsCommand(),
			policyCommand(),
			measureCommand(),
			secretCommand(),
		}, nodeCommands()...),
	}
	if err := app.RunContext(ctx, args.FlagsFirst(app, os.Args)); err != nil {
		fmt.Fprintln(os.Stderr, "cofferctl:", err)
		os.Exit(1)
	}
}
