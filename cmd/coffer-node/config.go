package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/urfave/cli/v2"

	shim "github.com/coffer-project/coffer/shim/config"
	snapshotter "github.com/coffer-project/coffer/snapshotter/config"
)

// configured are the programs that have a configuration.
var configured = map[string]struct {
	write    func(io.Writer) error
	validate func(path string) error
}{
	"shim": {
		write:    shim.WriteDefault,
		validate: func(path string) error { _, err := shim.Load(path); return err },
	},
	"snapshotter": {
		write:    func(w io.Writer) error { _, err := io.WriteString(w, snapshotter.DefaultText()); return err },
		validate: func(path string) error { _, err := snapshotter.Load(path); return err },
	},
}

func configCommand() *cli.Command {
	return &cli.Command{
		Name:  "config",
		Usage: "print or check the configuration of the shim (a runtime handler) or the snapshotter",
		Subcommands: []*cli.Command{
			{
				Name: "default", Usage: "print the complete commented default", ArgsUsage: "shim|snapshotter",
				Action: func(c *cli.Context) error {
					what, ok := configured[c.Args().First()]
					if !ok || c.Args().Len() != 1 {
						return fmt.Errorf("usage: cofferctl config default shim|snapshotter")
					}
					return what.write(c.App.Writer)
				},
			},
			{
				Name: "preset", Usage: "print what one of the shim's presets changes in the default", ArgsUsage: strings.Join(shim.Presets(), "|"),
				Action: func(c *cli.Context) error {
					text, err := shim.PresetText(c.Args().First())
					if err != nil {
						return err
					}
					_, err = io.WriteString(c.App.Writer, text)
					return err
				},
			},
			{
				Name: "validate", Usage: "check a file and report every fault", ArgsUsage: "shim|snapshotter [FILE]",
				Action: func(c *cli.Context) error {
					what, ok := configured[c.Args().First()]
					if !ok || c.Args().Len() > 2 {
						return fmt.Errorf("usage: cofferctl config validate shim|snapshotter [FILE]")
					}
					if err := what.validate(c.Args().Get(1)); err != nil {
						return err
					}
					_, err := fmt.Fprintln(c.App.Writer, "the configuration is valid")
					return err
				},
			},
		},
	}
}
