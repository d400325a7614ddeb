// Command demo shows the main job end to end on a private node: it encrypts an image, runs it through containerd's CRI
// in a VM, and proves that the host saw no layer. It writes report.json and fails when anything contradicts the claim.
// With --deny it shows what a host that goes astray is told instead, and writes deny.json.
//
// The machine needs no TEE: an SNP processor is forged, see package forgedsnp. All else is what an owner and a node have.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/coffer-project/coffer/integration/forgedsnp"
	"github.com/coffer-project/coffer/integration/harness"
	"github.com/coffer-project/coffer/integration/program"
)

func main() {
	forgedsnp.Intercept()
	program.Main(&cli.App{
		Name:  "demo",
		Usage: "run an encrypted image in a VM and report what the host saw of it",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "out", Value: "out/demo", Usage: "folder for the report"},
			&cli.StringFlag{Name: "image", Usage: "run an image of your own: oci:DIR[:TAG] or a registry reference"},
			&cli.BoolFlag{Name: "deny", Usage: "show what is refused, by whom, and with which words"},
			&cli.DurationFlag{Name: "timeout", Value: 10 * time.Minute, Usage: "give up after this time"},
		},
		Action: func(c *cli.Context) error {
			ctx, cancel := context.WithTimeout(c.Context, c.Duration("timeout"))
			defer cancel()
			if c.Bool("deny") {
				return demonstrate(ctx, c.String("image"), true, func(d *demo) error { return d.showRefusals(ctx, c.String("out")) })
			}
			return demonstrate(ctx, c.String("image"), false, func(d *demo) error { return d.showRuns(ctx, c.String("out")) })
		},
	})
}

// demonstrate starts a node, prepares owner and image, and shows something. With changed the node has a handler with a changed guest, too.
func demonstrate(ctx context.Context, image string, changed bool, show func(*demo) error) (retErr error) {
	program.Say("starting a node: registry, key broker, snapshotter, containerd, and a forged SNP processor")
	options := harness.Options{ForgedSNP: true}
	if changed {
		dir, err := os.MkdirTemp("", "coffer-demo")
		if err != nil {
			return err
		}
		defer func() { retErr = errors.Join(retErr, os.RemoveAll(dir)) }()
		if options.Handlers, err = changedGuest(dir); err != nil {
			return err
		}
	}
	node, err := harness.Start(ctx, options)
	if err != nil {
		return err
	}
	defer func() { retErr = errors.Join(retErr, node.Close()) }()

	d := &demo{node: node}
	if d.owner, err = newOwner(ctx, node); err != nil {
		return err
	}
	if err := d.prepare(ctx, image); err != nil {
		return err
	}
	return show(d)
}

// changedGuest makes a guest image in which one byte is another, and a runtime handler that launches it.
func changedGuest(dir string) (map[string]string, error) {
	tools, err := harness.FindTools()
	if err != nil {
		return nil, err
	}
	initrd := filepath.Join(dir, filepath.Base(tools.Initrd))
	if err := forgedsnp.ChangeByte(tools.Initrd, initrd); err != nil {
		return nil, err
	}
	return map[string]string{changedHandler: fmt.Sprintf("[hypervisor]\ninitrd = %q\n", initrd)}, nil
}

// showRuns runs the encrypted image from both registries, and the unencrypted one with runc.
func (d *demo) showRuns(ctx context.Context, out string) error {
	for _, registry := range []*harness.Registry{d.node.HTTP, d.node.HTTPS} {
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
