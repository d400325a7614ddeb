package main

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/urfave/cli/v2"

	"github.com/coffer-project/coffer/owner/podpolicy"
	"github.com/coffer-project/coffer/owner/seal"
	"github.com/coffer-project/coffer/proto/initdata"
)

func policyCommand() *cli.Command {
	return &cli.Command{
		Name:  "policy",
		Usage: "write and try out the policy by which a guest answers its host",
		Subcommands: []*cli.Command{
			{
				Name:      "generate",
				Usage:     "write the policy of a pod: its manifest, with each image pinned by digest",
				ArgsUsage: "MANIFEST|-",
				Flags: append([]cli.Flag{
					&cli.StringFlag{Name: "platform", Value: "linux/amd64", Usage: "of the images"},
					&cli.StringSliceFlag{Name: "any-value", Usage: "let the host choose the value of this variable (`NAME`), such as one from a secret; may be repeated"},
					&cli.StringSliceFlag{Name: "no-logs", Usage: "keep the output of this container (`NAME`) from the host; may be repeated"},
					&cli.BoolFlag{Name: "allow-exec", Usage: "let the host run any program in the containers, and not only the manifest's probes"},
					&cli.StringFlag{Name: "initdata", Usage: "put the policy into this document (`FILE`) and write that", TakesFile: true},
					&cli.StringFlag{Name: "format", Value: formatTOML, Usage: "of the document: toml or annotation (the value of " + initdata.Annotation + ")"},
					&cli.StringFlag{Name: "out", Aliases: []string{"o"}, Usage: "`FILE` to write, default standard output"},
				}, registryFlags()...),
				Action: generatePolicy,
			},
			{
				Name:      "check",
				Usage:     "decide about recorded requests as a guest does, one after the other",
				ArgsUsage: "REQUESTS|-",
				Description: "REQUESTS is JSON: objects with kind (the rule, such as CreateContainerRequest) and request, one after the other or in a list.\n" +
					"Where an object has allowed too, the decision is compared with it; else a refusal is an error.",
				Flags: []cli.Flag{
					&cli.StringFlag{Name: "policy", Required: true, Usage: "`FILE` with the policy, or with the document that brings it", TakesFile: true},
					&cli.BoolFlag{Name: "print", Usage: "show what the policy prints on the way"},
				},
				Action: checkPolicy,
			},
		},
	}
}

// readArgument reads the one argument, a file or - for standard input.
func readArgument(c *cli.Context, limit int64) ([]byte, error) {
	if c.NArg() != 1 {
		return nil, fmt.Errorf("want one argument, %s: %w", c.Command.ArgsUsage, errdefs.ErrInvalidArgument)
	}
	in := c.App.Reader
	if name := c.Args().First(); name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", c.Command.ArgsUsage, err)
		}
		defer f.Close()
		in = f
	}
	raw, err := io.ReadAll(io.LimitReader(in, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", c.Command.ArgsUsage, err)
	}
	if int64(len(raw)) > limit {
		return nil, fmt.Errorf("input is larger than %d bytes: %w", limit, errdefs.ErrInvalidArgument)
	}
	return raw, nil
}

func generatePolicy(c *cli.Context) error {
	manifest, err := readArgument(c, 4<<20)
	if err != nil {
		return err
	}
	policy, err := podpolicy.Generate(c.Context, manifest, podpolicy.Options{
		AnyValue: c.StringSlice("any-value"), NoLogs: c.StringSlice("no-logs"), AllowExec: c.Bool("allow-exec"),
		Lookup: func(ctx context.Context, name string) (*podpolicy.Image, error) { return lookUpImage(ctx, c, name) },
	})
	if err != nil {
		return err
	}
	out := []byte(policy)
	if file := c.String("initdata"); file != "" {
		if out, err = withPolicy(file, policy, c.String("format")); err != nil {
			return err
		}
	} else if c.IsSet("format") {
		return fmt.Errorf("--format is about the document of --initdata: %w", errdefs.ErrInvalidArgument)
	}
	return writeOutput(c, out)
}

// lookUpImage resolves a name as container engines do, where a short name is Docker Hub's.
func lookUpImage(ctx context.Context, c *cli.Context, name string) (*podpolicy.Image, error) {
	named, err := reference.ParseDockerRef(name)
	if err != nil {
		return nil, fmt.Errorf("image %q: %w: %w", name, err, errdefs.ErrInvalidArgument)
	}
	src, err := openImage(c, named.String())
	if err != nil {
		return nil, err
	}
	found, err := seal.ReadConfiguration(ctx, src, c.String("platform"))
	if err != nil {
		return nil, err
	}
	out := &podpolicy.Image{Digests: []string{found.Manifest.String()}, Config: found.Config}
	if found.Target != found.Manifest {
		out.Digests = append(out.Digests, found.Target.String())
	}
	return out, nil
}

// withPolicy puts a policy into a document, in the place of the one that it has.
func withPolicy(file, policy, format string) ([]byte, error) {
	form, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read initdata: %w", err)
	}
	raw, err := initdata.Unwrap(form)
	if err != nil {
		return nil, err
	}
	doc, err := initdata.Parse(raw)
	if err != nil {
		return nil, err
	}
	if doc.Data == nil {
		doc.Data = map[string]string{}
	}
	doc.Data[initdata.KeyPolicy] = policy
	coffer, err := doc.Coffer()
	if err != nil {
		return nil, err
	}
	coffer.Policy.Default = "" // says what holds without a policy
	delete(doc.Data, initdata.KeyCoffer)
	if text := coffer.Encode(); text != "" {
		doc.Data[initdata.KeyCoffer] = text
	}
	return encodeDocument(doc, format)
}
