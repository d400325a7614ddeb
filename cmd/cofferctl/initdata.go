package main

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/urfave/cli/v2"

	"github.com/coffer-project/coffer/proto/agentpolicy"
	"github.com/coffer-project/coffer/proto/initdata"
)

func initdataCommand() *cli.Command {
	return &cli.Command{
		Name:  "initdata",
		Usage: "make and inspect the measured document that tells a guest its broker, registries and policy",
		Subcommands: []*cli.Command{
			{
				Name:   "create",
				Usage:  "make a document, from flags or from whole files",
				Flags:  createFlags(),
				Action: createInitdata,
			},
			{
				Name: "inspect", ArgsUsage: "FILE|-",
				Usage:  "show what a document says; FILE is TOML, an annotation's value or a disk image",
				Action: inspectInitdata,
			},
			{
				Name: "digest", ArgsUsage: "FILE|-",
				Usage:  "print a document's digest and the values that bind it to a TEE",
				Action: digestInitdata,
			},
		},
	}
}

// maxInitdataFile bounds what is read: a document in its largest form, base64.
const maxInitdataFile = 2 * initdata.MaxSize

// readInitdata returns the document's text from the argument, whichever form it has.
func readInitdata(c *cli.Context) ([]byte, error) {
	if c.NArg() != 1 {
		return nil, fmt.Errorf("want one argument, %s: %w", c.Command.ArgsUsage, errdefs.ErrInvalidArgument)
	}
	in := c.App.Reader
	if name := c.Args().First(); name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, fmt.Errorf("read initdata: %w", err)
		}
		defer f.Close()
		in = f
	}
	raw, err := io.ReadAll(io.LimitReader(in, maxInitdataFile+1))
	if err != nil {
		return nil, fmt.Errorf("read initdata: %w", err)
	}
	if len(raw) > maxInitdataFile {
		return nil, fmt.Errorf("initdata is larger than %d bytes: %w", maxInitdataFile, errdefs.ErrInvalidArgument)
	}
	return initdata.Unwrap(raw)
}

func inspectInitdata(c *cli.Context) error {
	raw, err := readInitdata(c)
	if err != nil {
		return err
	}
	doc, err := initdata.Parse(raw)
	if err != nil {
		return err
	}
	algorithm, sum, err := initdata.Digest(raw)
	if err != nil {
		return err
	}
	out := c.App.Writer
	fmt.Fprintf(out, "version:   %s\ndigest:    %s:%s\nsize:      %d bytes\n", doc.Version, algorithm, hex.EncodeToString(sum), len(raw))
	for _, name := range slices.Sorted(maps.Keys(doc.Data)) {
		fmt.Fprintf(out, "entry:     %s, %d bytes\n", name, len(doc.Data[name]))
	}
	if err := printPolicy(out, doc); err != nil {
		return err
	}
	if text, ok := doc.Data[initdata.KeyCDH]; ok {
		if err := printCDH(out, text); err != nil {
			return err
		}
	}
	if text, ok := doc.Data[initdata.KeyAA]; ok {
		aa, err := initdata.ParseAA(text)
		if err != nil {
			return err
		}
		if aa.TokenConfigs.KBS != nil {
			fmt.Fprintf(out, "attests to: %s\n", aa.TokenConfigs.KBS.URL)
		}
	}
	return nil
}

// printPolicy says which requests of the host the guest will answer, and which guests are meant.
func printPolicy(out io.Writer, doc *initdata.Document) error {
	which, err := doc.PolicyDefault()
	if err != nil {
		return err
	}
	if which == "" {
		if _, err := agentpolicy.Compile(doc.Data[initdata.KeyPolicy]); err != nil {
			return err
		}
		which = initdata.KeyPolicy
	}
	fmt.Fprintf(out, "policy:    %s\n", which)
	coffer, err := doc.Coffer()
	if err != nil {
		return err
	}
	if tees := coffer.Attestation.TEEs; len(tees) > 0 {
		fmt.Fprintf(out, "guests:    %s only\n", strings.Join(tees, ", "))
	} else {
		fmt.Fprintln(out, "guests:    any; without a TEE they get no keys")
	}
	return nil
}

func printCDH(out io.Writer, text string) error {
	cdh, err := initdata.ParseCDH(text)
	if err != nil {
		return err
	}
	if cdh.KBC.URL != "" {
		trust := "the system's CAs"
		if cdh.KBC.Cert != "" {
			trust = "the CA in the document only"
		}
		fmt.Fprintf(out, "keys from: %s, trusting %s\n", cdh.KBC.URL, trust)
	}
	fmt.Fprintf(out, "extra CAs: %d\n", len(cdh.Image.ExtraRoots))
	if cdh.Image.Registries == nil {
		return nil
	}
	for _, r := range cdh.Image.Registries.Registries {
		fmt.Fprintf(out, "registry:  prefix %q location %q insecure %t blocked %t\n", r.Prefix, r.Location, r.Insecure, r.Blocked)
		for _, m := range r.Mirrors {
			fmt.Fprintf(out, "  mirror:  %q insecure %t\n", m.Location, m.Insecure)
		}
	}
	return nil
}

func digestInitdata(c *cli.Context) error {
	raw, err := readInitdata(c)
	if err != nil {
		return err
	}
	algorithm, sum, err := initdata.Digest(raw)
	if err != nil {
		return err
	}
	fmt.Fprintf(c.App.Writer, "%s:%s\nsnp host-data: %s\ntdx mrconfigid: %s\n", algorithm, hex.EncodeToString(sum),
		base64.StdEncoding.EncodeToString(initdata.Fit(sum, initdata.SNPHostData)),
		base64.StdEncoding.EncodeToString(initdata.Fit(sum, initdata.TDXMRConfigID)))
	return nil
}
