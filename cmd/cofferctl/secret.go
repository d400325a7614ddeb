package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/containerd/errdefs"
	"github.com/urfave/cli/v2"

	"github.com/coffer-project/coffer/owner/sign"
	"github.com/coffer-project/coffer/proto/kbs"
	"github.com/coffer-project/coffer/proto/sealed"
)

func secretCommand() *cli.Command {
	return &cli.Command{
		Name:  "secret",
		Usage: "write secrets into a pod's variables that only its guest can read",
		Subcommands: []*cli.Command{
			{
				Name:      "seal",
				Usage:     "write the value of a variable that a guest replaces by a resource of the key broker",
				ArgsUsage: "kbs:///REPOSITORY/TYPE/TAG",
				Description: "The value holds the resource's name and a signature, and no secret: put the secret into the key broker with cofferctl\n" +
					"kbs resource put, and the public key (cofferctl secret public-key) where --signer says.",
				Flags: []cli.Flag{
					&cli.StringFlag{Name: "key", Usage: "sign with the private key in this PEM `FILE`, ECDSA on P-256, as cofferctl image keygen makes it", TakesFile: true},
					passwordFlag(),
					&cli.StringFlag{Name: "signer", Usage: "resource `URI` of the key broker (kbs:///repository/type/tag) where guests find the public key"},
					&cli.BoolFlag{Name: "unsigned", Usage: "do not sign: guests open it only if their measured document says so"},
				},
				Action: sealSecret,
			},
			{
				Name:        "public-key",
				Usage:       "write a public key in the form (JWK) in which every guest can check sealed secrets with it",
				ArgsUsage:   "FILE",
				Description: "FILE is a public key in PEM, as cofferctl image keygen makes it. Coffer's guests take that as well.",
				Action:      writePublicKey,
			},
			{
				Name:        "inspect",
				Usage:       "tell what a sealed secret says",
				ArgsUsage:   "[TEXT]",
				Description: "without TEXT, or with -, it is read from standard input. With --key the signature is checked.",
				Flags: []cli.Flag{
					&cli.StringFlag{Name: "key", Usage: "check the signature with the public key in this `FILE`, JWK or PEM", TakesFile: true},
				},
				Action: inspectSecret,
			},
		},
	}
}

func sealSecret(c *cli.Context) error {
	if c.NArg() != 1 {
		return fmt.Errorf("want the name of one resource, kbs:///repository/type/tag, got %d arguments: %w", c.NArg(), errdefs.ErrInvalidArgument)
	}
	name, err := kbs.ParseResourceURI(c.Args().First())
	if err != nil {
		return err
	}
	vault := &sealed.Vault{Provider: sealed.ProviderKBS, Name: name.String()}
	text, err := sealedText(c, vault)
	if err != nil {
		return err
	}
	fmt.Fprintln(c.App.Writer, text)
	return nil
}

func sealedText(c *cli.Context, vault *sealed.Vault) (string, error) {
	switch {
	case c.Bool("unsigned") && (c.IsSet("key") || c.IsSet("signer")):
		return "", fmt.Errorf("--unsigned cannot be combined with --key and --signer: %w", errdefs.ErrInvalidArgument)
	case c.Bool("unsigned"):
		return vault.Unsigned()
	case c.String("key") == "" || c.String("signer") == "":
		return "", fmt.Errorf("--key and --signer are needed: a guest opens no secret that is not signed (or give --unsigned): %w", errdefs.ErrInvalidArgument)
	}
	signer, err := kbs.ParseResourceURI(c.String("signer"))
	if err != nil {
		return "", fmt.Errorf("--signer: %w", err)
	}
	text, err := os.ReadFile(c.String("key"))
	if err != nil {
		return "", fmt.Errorf("read key: %w", err)
	}
	secret, err := password(c)
	if err != nil {
		return "", err
	}
	key, err := sign.ParseKey(text, secret)
	if err != nil {
		return "", fmt.Errorf("key file %s: %w", c.String("key"), err)
	}
	out, err := vault.Sign(signer.String(), key.SignDigest)
	if err != nil {
		return "", fmt.Errorf("key file %s: %w", c.String("key"), err)
	}
	return out, nil
}

func writePublicKey(c *cli.Context) error {
	if c.NArg() != 1 {
		return fmt.Errorf("want one file with a public key, got %d arguments: %w", c.NArg(), errdefs.ErrInvalidArgument)
	}
	key, err := os.ReadFile(c.Args().First())
	if err != nil {
		return fmt.Errorf("read public key: %w", err)
	}
	public, err := sealed.ParseKey(key)
	if err != nil {
		return fmt.Errorf("%s: %w", c.Args().First(), err)
	}
	jwk, err := sealed.EncodeKey(public)
	if err != nil {
		return err
	}
	fmt.Fprintln(c.App.Writer, string(jwk))
	return nil
}

func inspectSecret(c *cli.Context) error {
	text, err := sealedArgument(c)
	if err != nil {
		return err
	}
	s, err := sealed.Parse(text)
	if err != nil {
		return err
	}
	if v := s.Vault; v != nil {
		fmt.Fprintf(c.App.Writer, "type:      vault\nprovider:  %s\nname:      %s\n", v.Provider, v.Name)
	} else {
		fmt.Fprintf(c.App.Writer, "type:      envelope (guests of Coffer do not open it)\nprovider:  %s\nkey:       %s\n", s.Envelope.Provider, s.Envelope.KeyID)
	}
	state := "unsigned"
	if s.Signed() {
		state = fmt.Sprintf("by %s, not checked (give --key)", s.KeyID)
	}
	if file := c.String("key"); file != "" {
		raw, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("read public key: %w", err)
		}
		key, err := sealed.ParseKey(raw)
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		if err := s.Verify(key); err != nil {
			return err
		}
		state = fmt.Sprintf("by %s, good", s.KeyID)
	}
	fmt.Fprintf(c.App.Writer, "signature: %s\n", state)
	return nil
}

// sealedArgument returns the sealed secret that the command is about.
func sealedArgument(c *cli.Context) (string, error) {
	switch {
	case c.NArg() > 1:
		return "", errors.New("want one sealed secret")
	case c.NArg() == 1 && c.Args().First() != "-":
		return c.Args().First(), nil
	}
	raw, err := io.ReadAll(io.LimitReader(c.App.Reader, sealed.MaxText+2))
	if err != nil {
		return "", fmt.Errorf("read sealed secret: %w", err)
	}
	return string(bytes.TrimRight(raw, "\r\n")), nil
}
