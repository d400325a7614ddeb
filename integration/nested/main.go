package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/coffer-project/coffer/integration/program"
)

func main() {
	program.Main(&cli.App{
		Name:  "nested",
		Usage: "run pods in a machine that has an IOMMU, vsock and devices to pass through",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "out", Value: "out/vfio", Usage: "folder for the console's log and, after a failure, the node's"},
			&cli.DurationFlag{Name: "timeout", Value: time.Hour, Usage: "give up after this time"},
		},
		Action: func(c *cli.Context) error {
			ctx, cancel := context.WithTimeout(c.Context, c.Duration("timeout"))
			defer cancel()
			return test(ctx, c.String("out"))
		},
	})
}

func test(ctx context.Context, out string) (retErr error) {
	begin := time.Now()
	dir, err := os.MkdirTemp("", "nested")
	if err != nil {
		return err
	}
	defer func() { retErr = errors.Join(retErr, os.RemoveAll(dir)) }()
	m := &machine{dir: dir, console: filepath.Join(out, "console.log"), logs: filepath.Join(out, "node")}
	if err := errors.Join(os.RemoveAll(m.logs), os.MkdirAll(out, 0o755)); err != nil {
		return err
	}

	program.Say("making the machine's disk")
	parts, err := findParts()
	if err != nil {
		return err
	}
	if err := m.prepare(ctx, parts); err != nil {
		return err
	}
	program.Say("booting the machine; what follows is slow, because its pods' machines are emulated by an emulated machine")
	if err := m.run(ctx); err != nil {
		return errors.Join(err, m.saveLogs())
	}
	fmt.Printf("passed in %.0f s\n", time.Since(begin).Seconds())
	return nil
}
