package main

import (
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/coffer-project/coffer/guestpull/image"
)

func pull(c *cli.Context) error {
	if c.NArg() != 1 {
		return fmt.Errorf("want one image reference, got %d arguments (flags come first)", c.NArg())
	}
	p, err := newPuller(c)
	if err != nil {
		return err
	}
	start := time.Now()
	img, err := p.Pull(c.Context, image.Request{
		ContainerID: "coffer-pull", Reference: c.Args().First(), Digest: c.String("digest"), Platform: c.String("platform"),
	})
	if err != nil {
		return err
	}
	if c.Bool("json") {
		enc := json.NewEncoder(c.App.Writer)
		enc.SetIndent("", "  ")
		return enc.Encode(img)
	}
	return show(c.App.Writer, img, time.Since(start))
}

// show prints what was pulled, the folders last, in the order of overlay's lowerdir.
func show(out io.Writer, img *image.Image, took time.Duration) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintf(w, "image:\t%s\nmanifest:\t%s\ntook:\t%s\n", img.Reference, img.ManifestDigest, took.Round(time.Millisecond))
	for _, p := range img.Report.Phases {
		fmt.Fprintf(w, "  %s\t%s\n", p.Name, time.Duration(p.Micros)*time.Microsecond)
	}
	for _, id := range img.Report.KeyIDs {
		fmt.Fprintf(w, "key:\t%s\n", id)
	}
	fmt.Fprintln(w, "\nLAYER\tPACKED\tUNPACKED\tENCRYPTED\tFOLDER")
	for i, l := range img.Report.Layers {
		fmt.Fprintf(w, "%.19s\t%d\t%d\t%t\t%s\n", l.Digest, l.Packed, l.Unpacked, l.Encrypted, img.Layers[i])
	}
	return w.Flush()
}
