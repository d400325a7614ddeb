// Command conformance runs cri-tools' critest with runc and with Coffer, on the same images, on private nodes, and
// compares. It writes report.json and fails unless every specification that Coffer does not meet is named, with its
// reason, in contrib/conformance/differences.md.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/coffer-project/coffer/integration/program"
)

// handlers are the runtime handlers of the test node that can be asked for, with what pulls their images.
var handlers = map[string]string{"runc": "overlayfs", "coffer": "coffer", "coffer-podsandbox": "coffer"}

// cure says where a critest binary comes from.
const cure = "critest is not part of this repository. Build it from the public one:\n" +
	"  git clone --depth 1 --branch v1.36.0 https://github.com/kubernetes-sigs/cri-tools\n" +
	"  make -C cri-tools critest        # cri-tools/build/bin/linux/amd64/critest\n" +
	"and name the file: make conformance CRITEST=PATH"

func main() {
	program.Main(&cli.App{
		Name:  "conformance",
		Usage: "run critest with runc and with Coffer and compare",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "critest", Usage: "a critest binary of cri-tools 1.36"},
			&cli.StringFlag{Name: "out", Value: "out/conformance", Usage: "folder for report.json and all logs"},
			&cli.StringFlag{Name: "differences", Value: "contrib/conformance/differences.md", Usage: "the specifications that Coffer does not meet, with reasons"},
			&cli.StringSliceFlag{Name: "runtimes", Value: cli.NewStringSlice("runc", "coffer"), Usage: "runtime handlers: runc, coffer, coffer-podsandbox"},
			&cli.StringSliceFlag{Name: "focus", Usage: "run only what matches this regular expression"},
			&cli.StringSliceFlag{Name: "skip", Usage: "leave out what matches this regular expression"},
			&cli.IntFlag{Name: "repeat", Value: 1, Usage: "how often Coffer is tested; a specification that does not always end alike is an error"},
			&cli.DurationFlag{Name: "timeout", Value: 2 * time.Hour, Usage: "give up after this time"},
		},
		Action: func(c *cli.Context) error {
			ctx, cancel := context.WithTimeout(c.Context, c.Duration("timeout"))
			defer cancel()
			return examine(ctx, options{
				critest: c.String("critest"), out: c.String("out"), differences: c.String("differences"), runtimes: c.StringSlice("runtimes"),
				focus: c.StringSlice("focus"), skip: c.StringSlice("skip"), repeat: c.Int("repeat"),
			})
		},
	})
}

type options struct {
	critest, out, differences string
	runtimes, focus, skip     []string
	repeat                    int
}

func (o options) validate() error {
	if info, err := os.Stat(o.critest); o.critest == "" || err != nil || info.Mode()&0o111 == 0 {
		return errors.New("no critest binary" + map[bool]string{true: "", false: " at " + o.critest}[o.critest == ""] + "\n" + cure)
	}
	if o.repeat < 1 {
		return errors.New("--repeat must be at least 1")
	}
	for _, name := range o.runtimes {
		if handlers[name] == "" {
			return fmt.Errorf("unknown runtime %q", name)
		}
	}
	return nil
}

func examine(ctx context.Context, o options) error {
	if err := o.validate(); err != nil {
		return err
	}
	known, err := readDifferences(o.differences)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return err
	}
	program.Say("building the test images")
	images, err := buildImages(ctx)
	if err != nil {
		return err
	}
	r := report{}
	for _, name := range o.runtimes {
		repeat := 1
		if name != "runc" {
			repeat = o.repeat
		}
		for i := range repeat {
			result, err := runSuite(ctx, o, name, i, images)
			if err != nil {
				return fmt.Errorf("test %s: %w", name, err)
			}
			r.add(result)
		}
	}
	r.compare(known)
	path, err := program.WriteJSON(o.out, "report.json", r)
	if err != nil {
		return err
	}
	r.print(os.Stdout)
	fmt.Println("report:", path)
	return r.verdict()
}
