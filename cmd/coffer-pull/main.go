// Command coffer-pull is the guest's image puller alone: for trying and measuring images without a guest, and as a service
// for other agents.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/urfave/cli/v2"

	"github.com/coffer-project/coffer/cmd/internal/args"

	// A guest has no certificate store of its own.
	_ "golang.org/x/crypto/x509roots/fallback"
)

const description = `IMAGE is a full reference like registry.example/team/app:1 or registry.example/team/app@sha256:...
DIR must be empty or missing. It gets a folder for each layer, in the form that overlay takes as lowerdir; after a failure
it is as it was.

Exit codes: 0 done, 2 wrong command line, 3 image or key not found, 4 registry or key broker not reachable, 5 access or key
refused, 6 image malformed, changed or of a kind that is not supported, 7 no room, 130 and 143 interrupted, 1 all else.`

func main() {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	ctx, cancel := context.WithCancel(context.Background())
	got := make(chan syscall.Signal, 1)
	go func() {
		s := <-signals
		// A second one ends the program at once.
		signal.Stop(signals)
		if number, ok := s.(syscall.Signal); ok {
			got <- number
		}
		cancel()
	}()
	pull := app()
	err := pull.RunContext(ctx, args.FlagsFirst(pull, os.Args))
	if err == nil {
		return
	}
	fmt.Fprintln(os.Stderr, "coffer-pull:", err)
	select {
	case number := <-got:
		os.Exit(128 + int(number))
	default:
		os.Exit(exitCode(err))
	}
}

func app() *cli.App {
	logLevel := &cli.StringFlag{Name: "log-level", Usage: "trace, debug, info, warn or error", Value: "warn"}
	setLevel := func(c *cli.Context) error { return log.SetLevel(c.String("log-level")) }
	wrongUsage := func(_ *cli.Context, err error, _ bool) error { return usageError{err} }
	return &cli.App{
		Name:            "coffer-pull",
		Usage:           "pull, verify, decrypt and unpack an image to a folder, and say what it took",
		UsageText:       "coffer-pull [options] IMAGE DIR\ncoffer-pull serve [options]",
		Description:     description,
		HideHelpCommand: true,
		// Errors are printed by main alone, and tests run the app.
		ExitErrHandler: func(*cli.Context, error) {},
		OnUsageError:   wrongUsage,
		Flags: append([]cli.Flag{
			logLevel,
			&cli.StringFlag{Name: "digest", Usage: "the manifest that the reference must name"},
			&cli.StringFlag{Name: "platform", Usage: "like linux/amd64 (default: this machine's)"},
			&cli.BoolFlag{Name: "json", Usage: "print the report as JSON"},
		}, pullerFlags()...),
		Before: setLevel,
		Action: pull,
		Commands: []*cli.Command{{
			Name:            "serve",
			Usage:           "serve the image pull service of the Confidential Data Hub on a socket",
			HideHelpCommand: true,
			OnUsageError:    wrongUsage,
			Flags: append([]cli.Flag{
				logLevel,
				&cli.StringFlag{Name: "root", Usage: "keep layers in this folder, which must be used for nothing else", Value: defaultRoot},
				&cli.StringFlag{Name: "socket", Usage: "unix socket to listen on", Value: "/run/confidential-containers/cdh.sock"},
			}, pullerFlags()...),
			Before: setLevel,
			Action: serve,
		}},
	}
}

// usageError is a command line that cannot be understood.
type usageError struct{ error }

// pullError is the failure of the pull itself, as opposed to that of what it needs on this machine.
type pullError struct{ error }

func (e pullError) Unwrap() error { return e.error }

// exitCode maps errors to what the description promises.
func exitCode(err error) int {
	if _, ok := errors.AsType[usageError](err); ok {
		return 2
	}
	if _, ok := errors.AsType[pullError](err); !ok {
		return 1
	}
	switch {
	case errdefs.IsNotFound(err):
		return 3
	case errdefs.IsUnavailable(err), errdefs.IsDeadlineExceeded(err):
		return 4
	case errdefs.IsUnauthorized(err), errdefs.IsPermissionDenied(err):
		return 5
	case errdefs.IsDataLoss(err), errdefs.IsFailedPrecondition(err), errdefs.IsInvalidArgument(err), errdefs.IsNotImplemented(err):
		return 6
	case errdefs.IsResourceExhausted(err):
		return 7
	default:
		return 1
	}
}
