// Command boot measures how long pods take to start on this machine: it runs empty pods one after the other on a private
// node and reports the phases of their starts. Given drop-ins of the shim's configuration, it measures each beside the
// node's own configuration, in turn, so that what else the machine does hits all alike.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/coffer-project/coffer/integration/harness"
	"github.com/coffer-project/coffer/integration/program"
)

// baseline is the handler with the node's own configuration.
const baseline = "coffer"

func main() {
	program.Main(&cli.App{
		Name:  "boot",
		Usage: "measure the start of pods",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "out", Value: "out/bench", Usage: "folder for boot.json and boot.svg"},
			&cli.IntFlag{Name: "pods", Value: 10, Usage: "pods of each kind"},
			&cli.StringSliceFlag{Name: "variant", Usage: "NAME=FILE: also measure with a drop-in of the shim's configuration; may be repeated"},
			&cli.DurationFlag{Name: "timeout", Value: 20 * time.Minute, Usage: "give up after this time"},
		},
		Action: func(c *cli.Context) error {
			ctx, cancel := context.WithTimeout(c.Context, c.Duration("timeout"))
			defer cancel()
			variants, err := readVariants(c.StringSlice("variant"))
			if err != nil {
				return err
			}
			return bench(ctx, c.String("out"), c.Int("pods"), variants)
		},
	})
}

func readVariants(words []string) (map[string]string, error) {
	variants := map[string]string{}
	for _, word := range words {
		name, path, ok := strings.Cut(word, "=")
		if !ok || name == "" || name == baseline {
			return nil, fmt.Errorf("variant %q: want NAME=FILE", word)
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		variants[name] = string(text)
	}
	return variants, nil
}

func bench(ctx context.Context, out string, pods int, variants map[string]string) (retErr error) {
	node, err := harness.Start(ctx, harness.Options{Handlers: variants})
	if err != nil {
		return err
	}
	defer func() { retErr = errors.Join(retErr, node.Close()) }()
	handlers := []string{baseline}
	for name := range variants {
		handlers = append(handlers, name)
	}
	r := newReport(handlers)
	// The first pod of each kind finds out about the machine and fills the page cache.
	for _, handler := range handlers {
		if _, err := measure(ctx, node, handler); err != nil {
			return err
		}
	}
	for range pods {
		for _, handler := range handlers {
			s, err := measure(ctx, node, handler)
			if err != nil {
				return err
			}
			r.add(handler, s)
		}
	}
	r.print(os.Stdout)
	return r.write(filepath.Clean(out))
}

// measure runs a pod, removes it, and returns its phases in milliseconds.
func measure(ctx context.Context, node *harness.Node, handler string) (_ sample, retErr error) {
	begin := time.Now()
	pod, err := node.CRI.RunPod(ctx, handler, node.CRI.PodConfig("bench", nil))
	if err != nil {
		return nil, err
	}
	whole := time.Since(begin)
	defer func() { retErr = errors.Join(retErr, pod.Remove(ctx)) }()
	report, err := pod.Report(ctx)
	if err != nil {
		return nil, err
	}
	s := sample{"run_pod_sandbox": milliseconds(whole.Microseconds())}
	for _, phase := range report.Boot {
		s["host "+phase.Name] = milliseconds(phase.Micros)
	}
	for _, phase := range report.GuestBoot {
		s["guest "+phase.Name] = milliseconds(phase.Micros)
	}
	return s, nil
}

func milliseconds(micros int64) float64 { return float64(micros) / 1000 }
