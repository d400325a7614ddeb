package main

import (
	"fmt"
	"io"
	"path"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/urfave/cli/v2"

	"github.com/coffer-project/coffer/owner/extension"
	"github.com/coffer-project/coffer/owner/guestimage"
)

func guestCommand() *cli.Command {
	return &cli.Command{
		Name:  "guest",
		Usage: "build and check the image that a guest boots",
		Subcommands: []*cli.Command{
			{
				Name:  "build",
				Usage: "build a guest image; the same inputs always give the same bytes",
				Flags: []cli.Flag{
					&cli.PathFlag{Name: "kernel", Required: true, Usage: "Debian linux-image package (`DEB|DIR`), packed or unpacked"},
					&cli.PathFlag{Name: "runc", Required: true, Usage: "statically linked runc `FILE`"},
					&cli.PathFlag{Name: "agent", Required: true, Usage: "coffer-guest `FILE`"},
					&cli.PathFlag{Name: "unpacker", Usage: "coffer-unpack `FILE` (default: the one beside the agent)"},
					&cli.PathFlag{Name: "out", Required: true, Usage: "`DIR` for vmlinux, vmlinuz, initrd.cpio and manifest.json"},
				},
				Action: buildGuest,
			},
			{
				Name:      "inspect",
				Usage:     "check a guest image against its manifest and list its parts",
				ArgsUsage: "DIR",
				Action:    inspectGuest,
			},
			{
				Name:      "extension",
				Usage:     "pack an EROFS file system as an extension image, and print the kernel parameter that guests check it by",
				ArgsUsage: "NAME EROFS",
				Flags: []cli.Flag{
					&cli.PathFlag{Name: "out", Required: true, Usage: "image `FILE`: its disk gets the serial extension-NAME"},
				},
				Action: packExtension,
			},
		},
	}
}

func buildGuest(c *cli.Context) error {
	if c.Args().Present() {
		return fmt.Errorf("guest build takes no arguments, got %q", c.Args().First())
	}
	in := guestimage.Inputs{Kernel: c.Path("kernel"), Runc: c.Path("runc"), Agent: c.Path("agent"), Unpacker: c.Path("unpacker")}
	if in.Unpacker == "" {
		in.Unpacker = filepath.Join(filepath.Dir(in.Agent), "coffer-unpack")
	}
	m, built, err := guestimage.Build(c.Context, in, c.Path("out"))
	if err != nil {
		return err
	}
	if !built {
		fmt.Fprintf(c.App.Writer, "%s is up to date\n", c.Path("out"))
	}
	return printGuest(c.App.Writer, m)
}

func packExtension(c *cli.Context) error {
	if c.NArg() != 2 {
		return fmt.Errorf("guest extension takes a name and an EROFS file system (mkfs.erofs -T0 FILE DIR)")
	}
	param, err := extension.Pack(c.Context, c.Args().Get(0), c.Args().Get(1), c.Path("out"))
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(c.App.Writer, param)
	return err
}

func inspectGuest(c *cli.Context) error {
	if c.NArg() != 1 {
		return fmt.Errorf("guest inspect takes one directory")
	}
	m, err := guestimage.Inspect(c.Context, c.Args().First())
	if err != nil {
		return err
	}
	return printGuest(c.App.Writer, m)
}

// printGuest lists the files of an image, and of the initramfs its programs one by one and its modules in one sum.
func printGuest(w io.Writer, m *guestimage.Manifest) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(name string, size int64, digest string) {
		fmt.Fprintf(table, "%s\t%.1f MiB\t%s\n", name, float64(size)/(1<<20), digest)
	}
	fmt.Fprintf(table, "kernel\t%s\t\n", m.Kernel)
	for _, p := range m.Files {
		row(p.Name, p.Size, "sha256:"+p.SHA256)
		if p.Name != guestimage.InitrdName {
			continue
		}
		var modules, count int64
		for _, inner := range m.Initrd {
			if strings.HasSuffix(path.Base(inner.Name), ".ko") {
				modules, count = modules+inner.Size, count+1
				continue
			}
			row("  "+inner.Name, inner.Size, "sha256:"+inner.SHA256)
		}
		row(fmt.Sprintf("  %d kernel modules", count), modules, "")
	}
	return table.Flush()
}
