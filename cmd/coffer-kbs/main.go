// Command coffer-kbs is the key broker: it releases keys to guests that prove what they are.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/containerd/log"
	"github.com/urfave/cli/v2"

	"github.com/coffer-project/coffer/owner/broker/config"
	"github.com/coffer-project/coffer/owner/broker/server"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	app := &cli.App{
		Name:  "coffer-kbs",
		Usage: "release keys to attested guests",
		Commands: []*cli.Command{
			{
				Name:   "serve",
				Usage:  "run the key broker until SIGTERM",
				Flags:  serveFlags(),
				Action: serve,
			},
			{
				Name:  "config",
				Usage: "show configuration",
				Subcommands: []*cli.Command{{
					Name:  "default",
					Usage: "print a complete configuration file with the built-in values",
					Action: func(c *cli.Context) error {
						text, err := config.Default().Encode()
						if err != nil {
							return err
						}
						_, err = c.App.Writer.Write(text)
						return err
					},
				}},
			},
			keygenCommand(),
			rewrapCommand(),
		},
	}
	if err := app.RunContext(ctx, os.Args); err != nil {
		fmt.Fprintln(os.Stderr, "coffer-kbs:", err)
		os.Exit(1)
	}
}

func serve(c *cli.Context) error {
	conf, err := configure(c)
	if err != nil {
		return err
	}
	if err := conf.Validate(); err != nil {
		return err
	}
	if err := log.SetLevel(conf.LogLevel); err != nil {
		return fmt.Errorf("log_level: %w", err)
	}
	s, err := server.New(c.Context, conf)
	if err != nil {
		return err
	}
	server.CollectLess()
	return s.Run(c.Context)
}
