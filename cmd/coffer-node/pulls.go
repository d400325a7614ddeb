package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/coffer-project/coffer/cmd/internal/bar"
	"github.com/coffer-project/coffer/node/pods"
)

// watchPause is how often pulls are looked at again; guests tell of nothing but bytes once a second.
const watchPause = time.Second

func pullsCommand() *cli.Command {
	return &cli.Command{
		Name:  "pulls",
		Usage: "show how far guests are with the images of their containers, and how long they took",
		Flags: []cli.Flag{
			shimFlag,
			&cli.BoolFlag{Name: "json", Usage: "write JSON"},
			&cli.BoolFlag{Name: "watch", Aliases: []string{"w"}, Usage: "go on, with bars on a terminal and a line for each change elsewhere"},
		},
		Action: showPulls,
	}
}

func showPulls(c *cli.Context) error {
	if c.Args().Present() || c.Bool("json") && c.Bool("watch") {
		return errors.New("usage: cofferctl pulls [--json | --watch]")
	}
	look := func() ([]pods.Pull, error) {
		found, err := list(c)
		return pods.Pulls(found), err
	}
	if c.Bool("watch") {
		return watchPulls(c.Context, c.App.Writer, look, watchPause)
	}
	pulls, err := look()
	if err != nil {
		return err
	}
	if c.Bool("json") {
		if pulls == nil {
			pulls = []pods.Pull{}
		}
		return writeJSON(c, pulls)
	}
	return writePulls(c.App.Writer, pulls)
}

// writePulls writes pulls as a table.
func writePulls(out io.Writer, pulls []pods.Pull) error {
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "POD\tCONTAINER\tIMAGE\tPHASE\tLAYERS\tFETCHED\tOF\tRATE\tTIME")
	for i := range pulls {
		p := &pulls[i]
		rate := "-"
		if p.BytesPerSecond > 0 {
			rate = bar.Bytes(p.BytesPerSecond) + "/s"
		}
		fmt.Fprintf(table, "%s\t%.13s\t%s\t%s\t%d/%d\t%s\t%s\t%s\t%s\n", p.Pod, p.Container, p.Image, p.Phase,
			p.LayersDone, p.Layers, bar.Bytes(p.Bytes), bar.Bytes(p.TotalBytes), rate, bar.Time(p.Took()))
	}
	return table.Flush()
}

// watchPulls shows pulls again and again until ctx ends: on a terminal one bar for each that is under way, elsewhere a line
// for each change.
func watchPulls(ctx context.Context, out io.Writer, look func() ([]pods.Pull, error), pause time.Duration) error {
	width, terminal := bar.Width(out)
	screen, known := bar.NewScreen(out, width), map[string]string{}
	ticker := time.NewTicker(pause)
	defer ticker.Stop()
	for {
		pulls, err := look()
		if ctx.Err() != nil {
			return nil // the user ended it, maybe while shims were asked
		}
		if err != nil {
			return err
		}
		if terminal {
			err = screen.Draw(bars(pulls))
		} else {
			err = writeChanges(out, pulls, known)
		}
		if err != nil {
			return err
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// bars are the lines of pulls under way, or one that says that there is none.
func bars(pulls []pods.Pull) []string {
	var lines []string
	done := 0
	for i := range pulls {
		if p := &pulls[i]; p.Done() {
			done++
		} else {
			lines = append(lines, line(p))
		}
	}
	if len(lines) == 0 {
		lines = []string{fmt.Sprintf("no image is being pulled; %d containers have theirs", done)}
	}
	return lines
}

func line(p *pods.Pull) string {
	return bar.Pull{
		Title: p.Pod + " " + short(p.Image), Phase: p.Phase, LayersDone: int(p.LayersDone), Layers: int(p.Layers),
		BytesFetched: p.Bytes, TotalBytes: p.TotalBytes, Rate: p.BytesPerSecond, Took: p.Took(),
	}.String()
}

// short is the last part of an image's name.
func short(reference string) string { return reference[strings.LastIndexByte(reference, '/')+1:] }

// writeChanges writes a line for each pull whose phase, layers or bytes are not those in known.
func writeChanges(out io.Writer, pulls []pods.Pull, known map[string]string) error {
	for i := range pulls {
		p := &pulls[i]
		state := fmt.Sprintf("%s %d %d", p.Phase, p.LayersDone, p.Bytes)
		if key := p.Sandbox + " " + p.Container; known[key] != state {
			known[key] = state
			if _, err := fmt.Fprintln(out, line(p)); err != nil {
				return err
			}
		}
	}
	return nil
}
