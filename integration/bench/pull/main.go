// Command pull measures how fast coffer-pull gets encrypted images on this machine: beside the limit that the machine
// itself sets (hash, cipher, inflate, write), and beside what else pulls such images, each in turn on the same image.
// Targets are fresh memory file systems, the registry is a process of its own on loopback whose time is not counted.
//
// Everything that a tool spends counts for it: the client, daemons, decoders, and whatever they started. See report.go for
// what pull.json holds.
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"github.com/coffer-project/coffer/integration/cache"
	"github.com/coffer-project/coffer/integration/program"
)

func main() { program.Main(app()) }

func app() *cli.App {
	return &cli.App{
		Name:  "bench-pull",
		Usage: "measure coffer-pull against the machine's limits and other tools (root)",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "out", Value: "out/bench", Usage: "folder for pull.json and pull.svg"},
			&cli.StringSliceFlag{Name: "images", Usage: "only these images: " + imageNames()},
			&cli.IntFlag{Name: "runs", Value: 3, Usage: "runs of each tool on each image"},
			&cli.StringSliceFlag{Name: "peers", Usage: "only these tools beside Coffer: " + peerNames() + ", or none (default: those installed)"},
			&cli.BoolFlag{Name: "quick", Usage: "images of a hundredth of the size: shows that the benchmark works, not how fast anything is"},
			&cli.BoolFlag{Name: "scaling", Usage: "measure too how Coffer's cost grows with layers, files and cores"},
			&cli.StringFlag{Name: "coffer-pull", Value: "bin/coffer-pull", Usage: "the program to measure"},
			&cli.StringFlag{Name: "cache", Usage: "folder for generated images (default: bench in the tool cache)"},
			&cli.StringFlag{Name: "decoder", Usage: "imgcrypt's ctd-decoder for containerd (default: one like it, built in)"},
		},
		Action: func(c *cli.Context) error { return measure(c) },
		Commands: []*cli.Command{
			{Name: "serve", Hidden: true, Usage: "serve image layouts as a registry", ArgsUsage: "DIR", Action: func(c *cli.Context) error {
				return serveLayouts(c.Context, c.Args().First(), os.Stdout)
			}},
			{Name: "decode", Hidden: true, Usage: "decrypt a layer for containerd", Action: func(*cli.Context) error {
				return decode(os.NewFile(3, "payload"), os.Stdin, os.Stdout)
			}},
		},
	}
}

func measure(c *cli.Context) (retErr error) {
	if os.Geteuid() != 0 {
		return errors.New("needs root, to mount memory file systems and to keep owners of files: run it as root")
	}
	folder, err := cacheFolder(c.String("cache"))
	if err != nil {
		return err
	}
	specs, err := chooseImages(c.StringSlice("images"), c.Bool("quick"))
	if err != nil {
		return err
	}
	images, err := ensureImages(c.Context, folder, specs)
	if err != nil {
		return err
	}
	scratch, err := os.MkdirTemp("", "coffer-bench-")
	if err != nil {
		return fmt.Errorf("make scratch folder: %w", err)
	}
	defer func() { retErr = errors.Join(retErr, os.RemoveAll(scratch)) }()
	b, err := newBench(c, folder, scratch)
	if err != nil {
		return err
	}
	defer func() { retErr = errors.Join(retErr, b.close()) }()

	r := newReport(c.Bool("quick"))
	if err := b.run(c.Context, images, c.Int("runs"), r); err != nil {
		return err
	}
	if c.Bool("scaling") {
		if err := b.scale(c.Context, folder, c.Bool("quick"), c.Int("runs"), r); err != nil {
			return err
		}
	}
	r.print(c.App.Writer)
	path, err := r.write(c.String("out"))
	if err != nil {
		return err
	}
	fmt.Fprintln(c.App.Writer, "report:", path)
	return nil
}

func cacheFolder(dir string) (string, error) {
	if dir != "" {
		return dir, nil
	}
	dir, err := cache.Dir()
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "bench"), nil
}
