package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/containerd/errdefs"
	"github.com/urfave/cli/v2"

	"github.com/coffer-project/coffer/owner/seal"
	"github.com/coffer-project/coffer/proto/imagepolicy"
)

func verifyCommand(registry []cli.Flag) *cli.Command {
	return &cli.Command{
		Name:      "verify",
		Usage:     "tell whether a guest would run an image, by its signatures and an image security policy",
		ArgsUsage: "REF",
		Description: "judges the image as guests do, for each of its platforms, and fails when one is refused. Give the policy\n" +
			"that guests get, or the keys of which one must have signed the image.",
		Flags: append([]cli.Flag{
			&cli.StringSliceFlag{Name: "key", Usage: "take signatures by the public key in this PEM `FILE`; may be repeated", TakesFile: true},
			&cli.StringFlag{Name: "policy", Usage: "judge by the containers-policy.json in this `FILE`", TakesFile: true},
			&cli.StringSliceFlag{Name: "broker-key", Usage: "read the policy's key `URI=FILE` from a file in place of the key broker; may be repeated"},
			&cli.StringFlag{Name: "platform", Usage: "judge only this platform of an index, like linux/amd64"},
		}, registry...),
		Action: verifyImage,
	}
}

func verifyImage(c *cli.Context) error {
	target, err := signable(c)
	if err != nil {
		return err
	}
	policy, err := policyFromFlags(c)
	if err != nil {
		return err
	}
	brokerKeys, err := brokerKeys(c)
	if err != nil {
		return err
	}
	d, err := seal.Inspect(c.Context, target)
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(c.App.Writer, 0, 8, 2, ' ', 0)
	judged, errs := 0, []error(nil)
	for _, img := range d.Images {
		if only := c.String("platform"); only != "" && img.Platform != "" && img.Platform != only {
			continue
		}
		judged++
		one := imagepolicy.Image{Reference: target.String(), Manifest: img.Digest}
		if d.Digest != img.Digest {
			one.Index = d.Digest
		}
		fmt.Fprintf(w, "image:\t%s\n", strings.TrimSpace(img.Digest.String()+" "+img.Platform))
		verdict, err := policy.Check(c.Context, one, target, brokerKeys)
		if err != nil {
			fmt.Fprintf(w, "verdict:\trefused\n")
			errs = append(errs, fmt.Errorf("%s %s: %w", img.Digest, img.Platform, err))
			continue
		}
		showVerdict(w, verdict)
	}
	if judged == 0 {
		return fmt.Errorf("%s has no image for platform %s: %w", target, c.String("platform"), errdefs.ErrNotFound)
	}
	return errors.Join(append(errs, w.Flush())...)
}

func showVerdict(w *tabwriter.Writer, verdict *imagepolicy.Verdict) {
	fmt.Fprintf(w, "verdict:\tmay run, by scope %s\n", verdict.Scope)
	for _, a := range verdict.Accepted {
		fmt.Fprintf(w, "rule:\t%s\n", a.Rule)
		if a.KeyID == "" {
			continue
		}
		fmt.Fprintf(w, "key:\t%s\n", strings.TrimSpace(a.KeyID+" "+a.KeyURI))
		name := a.Identity
		if name == "" {
			name = "(no name)"
		}
		fmt.Fprintf(w, "signed:\t%s as %s (%s)\n", a.Digest, name, a.Form)
	}
}

// policyFromFlags reads a policy, or makes one that wants a signature by one of the keys.
func policyFromFlags(c *cli.Context) (*imagepolicy.Policy, error) {
	files := c.StringSlice("key")
	if (c.String("policy") == "") == (len(files) == 0) {
		return nil, errors.New("give either --policy or --key")
	}
	if len(files) == 0 {
		raw, err := os.ReadFile(c.String("policy"))
		if err != nil {
			return nil, fmt.Errorf("read policy: %w", err)
		}
		return imagepolicy.Parse(raw)
	}
	var texts []string
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("read key: %w", err)
		}
		texts = append(texts, base64.StdEncoding.EncodeToString(raw))
	}
	raw, err := json.Marshal(map[string]any{"default": []any{map[string]any{"type": "sigstoreSigned", "keyDatas": texts}}})
	if err != nil {
		return nil, fmt.Errorf("encode policy: %w", err)
	}
	return imagepolicy.Parse(raw)
}

// brokerKeys stands in for the key broker.
func brokerKeys(c *cli.Context) (imagepolicy.Keys, error) {
	files := map[string]string{}
	for _, pair := range c.StringSlice("broker-key") {
		uri, file, ok := strings.Cut(pair, "=")
		if !ok {
			return nil, fmt.Errorf("--broker-key %q is not URI=FILE: %w", pair, errdefs.ErrInvalidArgument)
		}
		files[uri] = file
	}
	return func(_ context.Context, uri string) ([]byte, error) {
		file, ok := files[uri]
		if !ok {
			return nil, fmt.Errorf("give --broker-key %s=FILE: %w", uri, errdefs.ErrNotFound)
		}
		raw, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("read key: %w", err)
		}
		return raw, nil
	}, nil
}
