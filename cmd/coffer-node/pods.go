package main

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/containerd/errdefs"
	"github.com/urfave/cli/v2"

	"github.com/coffer-project/coffer/node/pods"
	shim "github.com/coffer-project/coffer/shim/config"
	"github.com/coffer-project/coffer/shim/status"
)

// list finds the pods of the configuration that the flags name.
func list(c *cli.Context) ([]pods.Pod, error) {
	config, err := shim.Load(c.String("config"))
	if err != nil {
		return nil, err
	}
	return pods.List(c.Context, config.StateDir)
}

func psCommand() *cli.Command {
	return &cli.Command{
		Name:  "ps",
		Usage: "list this node's pods, and what killed shims have left",
		Flags: []cli.Flag{shimFlag, &cli.BoolFlag{Name: "json", Usage: "write JSON, with all that is known of each pod"}},
		Action: func(c *cli.Context) error {
			found, err := list(c)
			if err != nil {
				return err
			}
			if c.Bool("json") {
				return writeJSON(c, found)
			}
			return pods.WriteTable(c.App.Writer, found, time.Now())
		},
	}
}

func consoleCommand() *cli.Command {
	return &cli.Command{
		Name:      "console",
		Usage:     "show what a pod's guest has written to its console",
		ArgsUsage: "POD",
		Description: "POD is a name, namespace/name, or the beginning of a sandbox id. guest.show_console in the shim's configuration\n" +
			"must allow it. The console can only be read: guests have no shell.",
		Flags: []cli.Flag{
			shimFlag,
			&cli.BoolFlag{Name: "follow", Aliases: []string{"f"}, Usage: "go on until the pod ends"},
			&cli.UintFlag{Name: "lines", Aliases: []string{"n"}, Usage: "how many `LINES` to begin with; 0: all that are kept"},
		},
		Action: func(c *cli.Context) error {
			if c.Args().Len() != 1 {
				return errors.New("usage: cofferctl console [--follow] [--lines N] POD")
			}
			lines := c.Uint("lines")
			if lines > 1<<16-1 {
				return fmt.Errorf("--lines %d: %w", lines, errdefs.ErrOutOfRange)
			}
			found, err := list(c)
			if err != nil {
				return err
			}
			pod, err := pods.Find(found, c.Args().First())
			if err != nil {
				return err
			}
			text, err := status.Console(c.Context, pod.StateDir, uint16(lines), c.Bool("follow"))
			if err != nil {
				return fmt.Errorf("console of pod %s: %w", pod.Name(), err)
			}
			defer text.Close()
			_, err = io.Copy(c.App.Writer, text)
			if c.Err() != nil || errors.Is(err, io.ErrUnexpectedEOF) {
				return nil // the user or the pod ended it
			}
			return err
		},
	}
}

func cleanCommand() *cli.Command {
	return &cli.Command{
		Name:  "clean",
		Usage: "release what killed shims have left and containerd has forgotten",
		Flags: []cli.Flag{shimFlag, &cli.BoolFlag{Name: "dry-run", Usage: "only say what would be done"}},
		Action: func(c *cli.Context) error {
			found, err := list(c)
			if err != nil {
				return err
			}
			var faults []error
			for i := range found {
				p := &found[i]
				if !p.Orphan {
					continue
				}
				if !c.Bool("dry-run") {
					if err := pods.Clean(c.Context, p); err != nil {
						faults = append(faults, err)
						continue
					}
				}
				if _, err := fmt.Fprintf(c.App.Writer, "%s %s\n", p.StateDir, p.Name()); err != nil {
					return err
				}
			}
			return errors.Join(faults...)
		},
	}
}
