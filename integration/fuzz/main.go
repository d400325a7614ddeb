// Command fuzz runs every fuzz target of the repository, one after the other, for a time each, and prints what came of it.
// It finds the targets by reading the test files, so a new one takes part without being listed anywhere.
//
// Go's fuzzer keeps the inputs that it found interesting in the build cache, and starts from them the next time. An input
// that fails is written below the package, to testdata/fuzz/TARGET, where it fails the package's tests until it is mended.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/coffer-project/coffer/integration/program"
)

func main() {
	program.Main(&cli.App{
		Name:  "fuzz",
		Usage: "run the fuzz targets of the repository",
		Flags: []cli.Flag{
			&cli.DurationFlag{Name: "time", Value: 30 * time.Second, Usage: "how long each target runs"},
			&cli.StringFlag{Name: "target", Usage: "only targets whose PACKAGE.NAME matches this regular expression"},
			&cli.IntFlag{Name: "parallel", Usage: "workers of a target (default: one per processor)"},
			&cli.BoolFlag{Name: "list", Usage: "name the targets and run none"},
			&cli.StringFlag{Name: "logs", Value: "out/fuzz", Usage: "folder for what the fuzzer says"},
		},
		Action: func(c *cli.Context) error { return fuzz(c) },
	})
}

func fuzz(c *cli.Context) error {
	wanted, err := regexp.Compile(c.String("target"))
	if err != nil {
		return fmt.Errorf("--target: %w", err)
	}
	targets, err := find(".", wanted)
	if err != nil {
		return err
	}
	if len(targets) == 0 {
		return fmt.Errorf("no fuzz target matches %q (--list names them)", wanted)
	}
	if c.Bool("list") {
		for _, t := range targets {
			fmt.Println(t)
		}
		return nil
	}
	if err := os.MkdirAll(c.String("logs"), 0o755); err != nil {
		return err
	}
	return runAll(c.Context, targets, options{
		time: c.Duration("time"), parallel: c.Int("parallel"), logs: c.String("logs"),
	}, os.Stdout)
}

// options are the same for all targets.
type options struct {
	time     time.Duration
	parallel int
	logs     string
}

func runAll(ctx context.Context, targets []target, opts options, out io.Writer) error {
	var results []result
	failed := 0
	for i, t := range targets {
		program.Say("%d of %d: %s for %s", i+1, len(targets), t, opts.time)
		r := run(ctx, t, opts)
		if ctx.Err() != nil {
			break
		}
		if r.err != nil {
			failed++
			program.Say("FAILED, see %s", r.log)
		}
		results = append(results, r)
	}
	if err := summary(out, results); err != nil {
		return err
	}
	switch {
	case ctx.Err() != nil:
		return errors.New("interrupted")
	case failed > 0:
		return fmt.Errorf("%d of %d targets failed; go test in their packages repeats what they found", failed, len(targets))
	}
	return nil
}

// summary prints a line for each target.
func summary(out io.Writer, results []result) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "TARGET\tTIME\tEXECUTIONS\tNEW\tCORPUS\tRESULT")
	for _, r := range results {
		verdict := "ok"
		switch {
		case r.err != nil && r.input != "":
			verdict = "FAILED: " + r.input
		case r.err != nil:
			verdict = "FAILED: " + r.err.Error() + ", " + filepath.ToSlash(r.log)
		}
		fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%d\t%s\n", r.target, r.took.Round(time.Second), r.execs, r.interesting, r.corpus, verdict)
	}
	return w.Flush()
}
