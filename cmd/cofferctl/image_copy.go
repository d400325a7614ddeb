package main

import (
	"fmt"
	"os"

	"github.com/urfave/cli/v2"

	"github.com/coffer-project/coffer/owner/seal"
)

func copyCommand(registry []cli.Flag) *cli.Command {
	return &cli.Command{
		Name:      "copy",
		Usage:     "copy an image as it is, between registries and folders",
		ArgsUsage: "SRC DST",
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "platform", Usage: "take only this platform of an index, like linux/amd64"},
		}, registry...),
		Action: copyImage,
	}
}

func copyImage(c *cli.Context) error {
	src, dst, err := sourceAndDestination(c)
	if err != nil {
		return err
	}
	progress := newProgress(os.Stderr)
	desc, err := seal.Copy(c.Context, src, dst, seal.CopyOptions{Platform: c.String("platform"), Progress: progress.update})
	progress.finish()
	if err != nil {
		return err
	}
	fmt.Fprintf(c.App.Writer, "image:  %s@%s\n", dst, desc.Digest)
	return nil
}
