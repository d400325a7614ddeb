package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/urfave/cli/v2"

	"github.com/coffer-project/coffer/owner/broker/keys"
	"github.com/coffer-project/coffer/owner/seal"
	"github.com/coffer-project/coffer/owner/sign"
)

// passwordVariable has a key's password, as for cosign.
const passwordVariable = "COSIGN_PASSWORD"

func passwordFlag() cli.Flag {
	return &cli.StringFlag{Name: "password-file", Usage: "read the key's password from this `FILE` (default: the variable " + passwordVariable + ")", TakesFile: true}
}

func keygenCommand() *cli.Command {
	return &cli.Command{
		Name:        "keygen",
		Usage:       "make a key pair for signing images",
		ArgsUsage:   "PREFIX",
		Description: "writes PREFIX.key, encrypted by a password, and PREFIX.pub. cosign takes both, as it makes them.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "type", Value: sign.Kinds[0], Usage: strings.Join(sign.Kinds, ", ")},
			passwordFlag(),
		},
		Action: generateKey,
	}
}

func signCommand(registry []cli.Flag) *cli.Command {
	return &cli.Command{
		Name:      "sign",
		Usage:     "sign an image for guests with an image security policy, and for all who check cosign's signatures",
		ArgsUsage: "REF",
		Description: "signs what the reference names, and the images of all platforms where that is an index. An existing\n" +
			"signature stays. No certificate authority and no transparency log is asked.",
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "key", Required: true, Usage: "sign with the private key in this PEM `FILE`, of cosign or cofferctl image keygen", TakesFile: true},
			passwordFlag(),
			&cli.StringFlag{Name: "identity", Usage: "the `NAME` that the signature gives the image (default: its repository); with a tag it is for this tag alone"},
			&cli.StringSliceFlag{Name: "form", Usage: "write only this form: tag (of all versions of cosign) or bundle (of cosign 3, by referrers); may be repeated"},
			&cli.StringSliceFlag{Name: "annotation", Usage: "sign this `KEY=VALUE` along; may be repeated"},
		}, registry...),
		Action: signImage,
	}
}

// password reads the password of a key.
func password(c *cli.Context) ([]byte, error) {
	if file := c.String("password-file"); file != "" {
		raw, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("read password: %w", err)
		}
		return bytes.TrimRight(raw, "\r\n"), nil
	}
	return []byte(os.Getenv(passwordVariable)), nil
}

func generateKey(c *cli.Context) error {
	if c.NArg() != 1 {
		return fmt.Errorf("want the prefix of the files' names, got %d arguments", c.NArg())
	}
	secret, err := password(c)
	if err != nil {
		return err
	}
	if len(secret) == 0 {
		return errors.New("the key needs a password: give --password-file, or set " + passwordVariable)
	}
	key, err := sign.Generate(c.String("type"))
	if err != nil {
		return err
	}
	private, err := key.Encode(secret)
	if err != nil {
		return err
	}
	public, err := key.EncodePublic()
	if err != nil {
		return err
	}
	prefix := c.Args().First()
	if err := keys.WriteNew(prefix+".key", private, 0o600); err != nil {
		return err
	}
	if err := keys.WriteNew(prefix+".pub", public, 0o644); err != nil {
		return errors.Join(err, os.Remove(prefix+".key"))
	}
	fmt.Fprintf(c.App.Writer, "private: %s.key\npublic:  %s.pub\nid:      %s\n", prefix, prefix, key.Public().ID())
	return nil
}

func signImage(c *cli.Context) error {
	target, err := signable(c)
	if err != nil {
		return err
	}
	o, err := signOptions(c)
	if err != nil {
		return err
	}
	if o.Identity == "" {
		o.Identity = target.Name()
	}
	list, err := documents(c, target)
	if err != nil {
		return err
	}
	for _, desc := range list {
		if err := sign.Sign(c.Context, target, desc, o); err != nil {
			return err
		}
		fmt.Fprintln(c.App.Writer, strings.TrimSpace(fmt.Sprintf("signed %s %s", desc.Digest, platformName(desc.Platform))))
	}
	fmt.Fprintf(c.App.Writer, "image:  %s\nname:   %s\nkey:    %s\n", target, o.Identity, o.Key.Public().ID())
	return nil
}

// signable opens the image that the argument names. Signatures have their place in registries only.
func signable(c *cli.Context) (*seal.Registry, error) {
	if c.NArg() != 1 {
		return nil, fmt.Errorf("want one image, got %d arguments", c.NArg())
	}
	opened, err := openImage(c, c.Args().First())
	if err != nil {
		return nil, err
	}
	target, ok := opened.(*seal.Registry)
	if !ok {
		return nil, fmt.Errorf("%s is a folder, and signatures are kept in registries: push the image first: %w", opened, errdefs.ErrInvalidArgument)
	}
	return target, nil
}

func signOptions(c *cli.Context) (sign.Options, error) {
	o := sign.Options{Identity: c.String("identity"), Forms: c.StringSlice("form")}
	for _, form := range o.Forms {
		if form != sign.FormTag && form != sign.FormBundle {
			return o, fmt.Errorf("form %q is none of %q: %w", form, sign.Forms, errdefs.ErrInvalidArgument)
		}
	}
	for _, pair := range c.StringSlice("annotation") {
		name, value, ok := strings.Cut(pair, "=")
		if !ok || name == "" {
			return o, fmt.Errorf("--annotation %q is not KEY=VALUE: %w", pair, errdefs.ErrInvalidArgument)
		}
		if o.Annotations == nil {
			o.Annotations = map[string]string{}
		}
		o.Annotations[name] = value
	}
	text, err := os.ReadFile(c.String("key"))
	if err != nil {
		return o, fmt.Errorf("read key: %w", err)
	}
	secret, err := password(c)
	if err != nil {
		return o, err
	}
	if o.Key, err = sign.ParseKey(text, secret); err != nil {
		return o, fmt.Errorf("key file %s: %w", c.String("key"), err)
	}
	return o, nil
}

// documents lists what is signed: the image, or the index and the images in it.
func documents(c *cli.Context, target *seal.Registry) ([]ocispec.Descriptor, error) {
	top, raw, err := seal.Document(c.Context, target)
	if err != nil {
		return nil, err
	}
	var index ocispec.Index
	if err := json.Unmarshal(raw, &index); err != nil {
		return nil, fmt.Errorf("parse %s: %w", top.Digest, err)
	}
	list := []ocispec.Descriptor{top}
	for _, desc := range index.Manifests {
		// Those of an unknown system are attestations of build tools.
		if desc.Platform != nil && desc.Platform.OS != "unknown" {
			list = append(list, desc)
		}
	}
	return list, nil
}

func platformName(p *ocispec.Platform) string {
	if p == nil {
		return ""
	}
	return strings.TrimSuffix(p.OS+"/"+p.Architecture+"/"+p.Variant, "/")
}
