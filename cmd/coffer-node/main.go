// Command coffer-node is the host's half of cofferctl, for a node's admin: what is wrong with the node, which pods it has,
// how far their image pulls are, what their guests say on their consoles, and figures for Prometheus. Like all of the host's programs it can decrypt
// nothing. `cofferctl doctor` and its like run it.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/cmd/internal/args"
)

// version is set at build time.
var version = "devel"

// exitError ends the program with a code and without a word: all is said.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	node := app(os.Stdout)
	err := node.RunContext(ctx, args.FlagsFirst(node, os.Args))
	stop()
	if code, ok := errors.AsType[exitError](err); ok {
		os.Exit(int(code))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "cofferctl:", err)
		os.Exit(1)
	}
}

func app(out io.Writer) *cli.App {
	return &cli.App{
		Name:            "cofferctl",
		Usage:           "look after a node that runs Coffer's pods",
		Version:         version,
		Writer:          out,
		HideHelpCommand: true,
		// Errors are printed by main alone, and tests run the app.
		ExitErrHandler: func(*cli.Context, error) {},
		Commands: []*cli.Command{
			doctorCommand(), psCommand(), pullsCommand(), consoleCommand(), cleanCommand(), configCommand(), launchCommand(), metricsCommand(),
		},
	}
}

// isTerminal tells whether a person looks at what is written.
func isTerminal(w io.Writer) bool {
	file, ok := w.(*os.File)
	if !ok || os.Getenv("NO_COLOR") != "" {
		return false
	}
	_, err := unix.IoctlGetTermios(int(file.Fd()), unix.TCGETS)
	return err == nil
}
