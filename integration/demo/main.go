// Command demo shows the main job end to end on a private node: it encrypts an image, runs it through containerd's CRI
// in a VM, and proves that the host saw no layer. It writes report.json and fails when anything contradicts the claim.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/coffer-project/coffer/integration/harness"
	"github.com/coffer-project/coffer/integration/program"
)

func main() {
	program.Main(&cli.App{
		Name:  "demo",
		Usage: "run an encrypted image in a VM and report what the host saw of it",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "out", Value: "out/demo", Usage: "folder for report.json"},
			&cli.StringFlag{Name: "image", Usage: "run an image of your own: oci:DIR[:TAG] or a registry reference"},
			&cli.DurationFlag{Name: "timeout", Value: 10 * time.Minute, Usage: "give up after this time"},
		},
		Action: func(c *cli.Context) error {
			ctx, cancel := context.WithTimeout(c.Context, c.Duration("timeout"))
			defer cancel()
			return demonstrate(ctx, c.String("out"), c.String("image"))
		},
	})
}

func demonstrate(ctx context.Context, out, image string) (retErr error) {
	program.Say("starting a node: registry, key broker, snapshotter, containerd")
	node, err := harness.Start(ctx, harness.Options{})
	if err != nil {
		return err
	}
	defer func() { retErr = errors.Join(retErr, node.Close()) }()

	d := &demo{node: node}
	if err := d.prepare(ctx, image); err != nil {
		return err
	}
	for _, registry := range []*harness.Registry{node.HTTP, node.HTTPS} {
		if err := d.runEncrypted(ctx, registry); err != nil {
			return err
		}
	}
	if err := d.runPlain(ctx); err != nil {
		return err
	}
	d.report.run, d.report.Notes = d.report.Runs[0], notes
	path, err := program.WriteJSON(out, "report.json", &d.report)
	if err != nil {
		return err
	}
	d.report.print(os.Stdout)
	fmt.Println("report:", path)

	var faults []error
	for _, fault := range d.report.verdict() {
		faults = append(faults, errors.New(fault))
	}
	return errors.Join(faults...)
}
