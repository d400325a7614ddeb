package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/coffer-project/coffer/integration/program"
)

func main() {
	program.Main(&cli.App{
		Name:  "clientsuite",
		Usage: "run containerd's client tests with Coffer",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "tests", Usage: "the test `BINARY`; it is built from containerd's module when none is named"},
			&cli.StringFlag{Name: "run", Value: applicable, Usage: "run the tests that match this regular expression"},
			&cli.StringFlag{Name: "differences", Value: "contrib/conformance/client-suite.md", Usage: "the tests that Coffer does not pass, with reasons"},
			&cli.StringFlag{Name: "out", Value: "out/clientsuite", Usage: "folder for the logs"},
			&cli.DurationFlag{Name: "timeout", Value: 2 * time.Hour, Usage: "give up after this time"},
		},
		Action: func(c *cli.Context) error {
			ctx, cancel := context.WithTimeout(c.Context, c.Duration("timeout"))
			defer cancel()
			return examine(ctx, options{
				tests: c.String("tests"), run: c.String("run"), differences: c.String("differences"), out: c.String("out"),
			})
		},
	})
}

// applicable are the tests that use the runtime or the snapshotter; the others test containerd's own services.
const applicable = `^Test((New)?(Container|Task|Wait|Kill|Delete|Process|Shim|Short|Regression|User|UID|Bind|Issue)|Image|Pull|Runtime|DefaultRuntime|Snapshotter|Export|Import|Transfer|Convert|IDMapped).*$`

// ownDaemon are tests that start, stop or look into a containerd of their own, which knows nothing of this node. What they
// test of shims, TestContainerdKilled of the package integration does.
const ownDaemon = `^(TestShimDoesNotLeakPipes|TestShimDoesNotLeakSockets|TestShimOOMScore|TestDaemon.*|TestRestartMonitor|TestTransferEcho|TestImagePullWithTracing|TestShimTrace.*)$`

type options struct{ tests, run, differences, out string }

func examine(ctx context.Context, o options) error {
	text, err := os.ReadFile(o.differences)
	if err != nil {
		return fmt.Errorf("read the known differences: %w", err)
	}
	known, err := parseDifferences(string(text))
	if err != nil {
		return fmt.Errorf("read %s: %w", o.differences, err)
	}
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return err
	}
	if o.tests == "" {
		if o.tests, err = buildTests(ctx, o.out); err != nil {
			return err
		}
	}
	results, err := runSuite(ctx, o)
	if err != nil {
		return err
	}
	return verdict(os.Stdout, results, known)
}

// atTimes begins the reason of a difference that does not show on every machine, or not every time.
const atTimes = "at times: "

// verdict prints the results. It fails unless exactly the known differences failed, as far as they ran.
func verdict(out *os.File, results map[string]outcome, known map[string]string) error {
	count := map[outcome]int{}
	var faults []error
	for _, name := range sorted(results) {
		result := results[name]
		count[result]++
		fmt.Fprintf(out, "%-5s %s\n", result, name)
		switch {
		case result == failed && known[name] == "":
			faults = append(faults, fmt.Errorf("%s fails and is not among the known differences", name))
		case result == passed && known[name] != "" && !strings.HasPrefix(known[name], atTimes):
			faults = append(faults, fmt.Errorf("%s passes; take it out of the known differences", name))
		}
	}
	fmt.Fprintf(out, "pass %d, fail %d, skip %d\n", count[passed], count[failed], count[skipped])
	if len(results) == 0 {
		faults = append(faults, errors.New("no test ran"))
	}
	return errors.Join(faults...)
}
