package main

import (
	"encoding/json"

	"github.com/urfave/cli/v2"

	"github.com/coffer-project/coffer/node/doctor"
	shim "github.com/coffer-project/coffer/shim/config"
	snapshotter "github.com/coffer-project/coffer/snapshotter/config"
)

// Exit codes of doctor.
const (
	exitFailures = 1
	exitWarnings = 2
)

var shimFlag = &cli.StringFlag{Name: "config", Usage: "the shim's configuration `FILE`; without it " + shim.DefaultPath + ", if there"}

func doctorCommand() *cli.Command {
	return &cli.Command{
		Name:  "doctor",
		Usage: "examine this node and say what to do about each fault",
		Description: "Exit code 0: pods can run here; 1: something keeps them from running; 2: only with --strict, there are warnings.\n" +
			"Nothing on the node is changed. The first run boots a guest kernel for a moment.",
		Flags: []cli.Flag{
			shimFlag,
			&cli.StringFlag{Name: "snapshotter-config", Usage: "the snapshotter's configuration `FILE`; without it " + snapshotter.DefaultPath + ", if there"},
			&cli.StringFlag{Name: "containerd-config", Usage: "containerd's main configuration `FILE`; without it containerd's default"},
			&cli.BoolFlag{Name: "json", Usage: "write JSON"},
			&cli.BoolFlag{Name: "strict", Usage: "end with code 2 when there are warnings"},
		},
		Action: func(c *cli.Context) error {
			x := &doctor.Examination{
				Host: doctor.Machine{}, Probes: doctor.RealProbes(),
				Paths: doctor.Paths{
					Shim: c.String("config"), Snapshotter: c.String("snapshotter-config"), Containerd: c.String("containerd-config"),
				},
			}
			findings := x.Run(c.Context)
			if err := writeFindings(c, findings); err != nil {
				return err
			}
			switch worst := doctor.Worst(findings); {
			case worst == doctor.Fail:
				return exitError(exitFailures)
			case worst == doctor.Warn && c.Bool("strict"):
				return exitError(exitWarnings)
			}
			return nil
		},
	}
}

func writeFindings(c *cli.Context, findings []doctor.Finding) error {
	if c.Bool("json") {
		return writeJSON(c, findings)
	}
	return doctor.WriteTable(c.App.Writer, findings, isTerminal(c.App.Writer))
}

func writeJSON(c *cli.Context, value any) error {
	encoder := json.NewEncoder(c.App.Writer)
	encoder.SetIndent("", "  ")
	return encoder.Encode(value)
}
