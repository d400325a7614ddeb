package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	"github.com/urfave/cli/v2"

	"github.com/coffer-project/coffer/owner/broker/client"
	"github.com/coffer-project/coffer/owner/broker/keys"
	"github.com/coffer-project/coffer/owner/seal"
	"github.com/coffer-project/coffer/proto/kbs"
	"github.com/coffer-project/coffer/proto/keyprovider"
)

// registryFlags say how registries are reached.
func registryFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "plain-http", Usage: "talk http instead of https to registries; without the flag only to those on this machine"},
		&cli.StringFlag{Name: "ca", Usage: "trust the authorities in this PEM `FILE` beside the system's", TakesFile: true},
		&cli.StringFlag{Name: "authfile", Usage: "read registry credentials from this `FILE` (default: ~/.docker/config.json, where it exists)", TakesFile: true},
	}
}

func imageCommand() *cli.Command {
	registry := registryFlags()
	return &cli.Command{
		Name:  "image",
		Usage: "encrypt, sign, copy and inspect images",
		Description: "An image is a full reference like registry.example:5000/app:1,\n" +
			"or oci:FOLDER[:TAG] for a folder in OCI's image layout.",
		Subcommands: []*cli.Command{
			copyCommand(registry),
			keygenCommand(),
			signCommand(registry),
			verifyCommand(registry),
			{
				Name:      "encrypt",
				Usage:     "encrypt the layers of an image for guests",
				ArgsUsage: "SRC DST",
				Flags: append([]cli.Flag{
					&cli.StringFlag{Name: "key-id", Usage: "the key's name at the broker, kbs:///repository/type/tag", Required: true},
					&cli.StringFlag{Name: "kbs-url", Usage: "hand the key to the key broker at this `URL`", EnvVars: []string{"COFFER_KBS_URL"}},
					&cli.StringFlag{Name: "admin-key", Usage: "sign in to the broker with the Ed25519 key in this PEM `FILE`", EnvVars: []string{"COFFER_KBS_ADMIN_KEY"}, TakesFile: true},
					&cli.StringFlag{Name: "kbs-ca", Usage: "trust only the authorities in this PEM `FILE` for the broker", EnvVars: []string{"COFFER_KBS_CA"}, TakesFile: true},
					&cli.StringFlag{Name: "key-file", Usage: "use the 32 bytes in this `FILE` as the key; a new random key is made where it does not exist", TakesFile: true},
					&cli.BoolFlag{Name: "replace-key", Usage: "put a new random key in the place of one that the broker has; images that need the old one are lost"},
					&cli.StringSliceFlag{Name: "platform", Usage: "take only this platform of an index, like linux/amd64; may be repeated"},
					&cli.IntSliceFlag{Name: "layer", Usage: "encrypt only this layer, counted from 0, or from the end when negative; may be repeated"},
					&cli.StringFlag{Name: "wrap-type", Usage: "how layer keys are wrapped: A256GCM or A256CTR", Value: string(keyprovider.WrapGCM)},
				}, registry...),
				Action: encryptImage,
			},
			{
				Name:      "inspect",
				Usage:     "show the layers of an image, and which keys open them",
				ArgsUsage: "REF",
				Flags:     registry,
				Action:    inspectImage,
			},
		},
	}
}

func encryptImage(c *cli.Context) error {
	src, dst, err := sourceAndDestination(c)
	if err != nil {
		return err
	}
	opts, err := sealOptions(c)
	if err != nil {
		return err
	}
	progress := newProgress(os.Stderr)
	opts.Progress = progress.update
	result, err := seal.Encrypt(c.Context, src, dst, opts)
	progress.finish()
	if err != nil {
		return err
	}
	for _, img := range result.Images {
		fmt.Fprintf(c.App.Writer, "%s\n", strings.TrimSpace(fmt.Sprintf("%d of %d layers encrypted in %s %s", img.Encrypted, img.Layers, img.Digest, img.Platform)))
	}
	fmt.Fprintf(c.App.Writer, "image:  %s@%s\nkey:    %s\n", dst, result.Desc.Digest, opts.KeyID)
	return nil
}

// sealOptions turns flags into options. A key must end up in some place from where it can be had again.
func sealOptions(c *cli.Context) (seal.Options, error) {
	var opts seal.Options
	uri, err := kbs.ParseResourceURI(c.String("key-id"))
	if err != nil {
		return opts, err
	}
	opts.KeyID, opts.Platforms, opts.Layers = uri, c.StringSlice("platform"), c.IntSlice("layer")
	if opts.Wrap, err = keyprovider.ParseWrapType(c.String("wrap-type")); err != nil {
		return opts, err
	}
	if c.String("kbs-url") == "" && c.String("key-file") == "" {
		return opts, errors.New("give --kbs-url and --admin-key to hand the key to a broker, or --key-file to keep it; otherwise it would be lost")
	}
	if c.String("kbs-url") != "" {
		if opts.Keys, err = brokerAdmin(c, uri); err != nil {
			return opts, err
		}
	}
	opts.KEK, err = readKey(c.String("key-file"))
	return opts, err
}

func brokerAdmin(c *cli.Context, uri kbs.ResourceURI) (seal.KeyStore, error) {
	if c.String("admin-key") == "" {
		return nil, errors.New("--kbs-url needs --admin-key, the private key that the broker knows its admin by")
	}
	raw, err := os.ReadFile(c.String("admin-key"))
	if err != nil {
		return nil, fmt.Errorf("read admin key: %w", err)
	}
	key, err := keys.ParseAdminPrivate(raw)
	if err != nil {
		return nil, fmt.Errorf("read admin key %s: %w", c.String("admin-key"), err)
	}
	ca, err := readOptional(c.String("kbs-ca"))
	if err != nil {
		return nil, err
	}
	broker, err := client.New(client.Options{URL: c.String("kbs-url"), CACertPEM: ca, Key: key})
	if err != nil {
		return nil, err
	}
	if c.String("key-file") != "" || c.Bool("replace-key") {
		return broker, nil
	}
	// A random key under a name in use would lock everybody out of the images that were encrypted before. Not every broker
	// can list its resources; one that cannot be asked at all is noticed when the key is handed over.
	if known, err := broker.List(c.Context); err == nil && slices.Contains(known, uri) {
		return nil, fmt.Errorf("the broker has a key %s already; choose another --key-id, use that key with --key-file, or give --replace-key: %w", uri, errdefs.ErrAlreadyExists)
	}
	return broker, nil
}

// readKey reads a key from a file, or makes one, in the file when a name is given.
func readKey(file string) ([]byte, error) {
	key := make([]byte, keyprovider.KEKSize)
	if file == "" {
		rand.Read(key)
		return key, nil
	}
	raw, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		rand.Read(key)
		return key, keys.WriteNew(file, key, 0o600)
	}
	if err != nil {
		return nil, fmt.Errorf("read key: %w", err)
	}
	if len(raw) != keyprovider.KEKSize {
		return nil, fmt.Errorf("key file %s has %d bytes, want %d: %w", file, len(raw), keyprovider.KEKSize, errdefs.ErrInvalidArgument)
	}
	return raw, nil
}

func readOptional(file string) ([]byte, error) {
	if file == "" {
		return nil, nil
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read CA file: %w", err)
	}
	return raw, nil
}

// image is both ends of an encryption.
type image interface {
	seal.Source
	seal.Destination
}

// sourceAndDestination opens the images that the two arguments name.
func sourceAndDestination(c *cli.Context) (src, dst image, err error) {
	if c.NArg() != 2 {
		return nil, nil, fmt.Errorf("want a source and a destination image, got %d arguments", c.NArg())
	}
	if src, err = openImage(c, c.Args().Get(0)); err != nil {
		return nil, nil, err
	}
	dst, err = openImage(c, c.Args().Get(1))
	return src, dst, err
}

// openImage understands oci:FOLDER[:TAG] and registry references.
func openImage(c *cli.Context, name string) (image, error) {
	if dir, tag, ok := parseLayout(name); ok {
		return seal.NewLayout(dir, tag), nil
	}
	ca, err := readOptional(c.String("ca"))
	if err != nil {
		return nil, err
	}
	creds, err := readCredentials(c.String("authfile"))
	if err != nil {
		return nil, err
	}
	return seal.NewRegistry(name, seal.RegistryOptions{
		PlainHTTP: plainHTTP(c, name), CA: ca, Credentials: creds, Proxy: http.ProxyFromEnvironment,
	})
}

// plainHTTP follows the flag, and without it the custom of container tools: a registry on loopback speaks http.
func plainHTTP(c *cli.Context, name string) bool {
	if c.IsSet("plain-http") {
		return c.Bool("plain-http")
	}
	host, _, _ := strings.Cut(name, "/")
	local, err := docker.MatchLocalhost(host)
	return err == nil && local
}

func inspectImage(c *cli.Context) error {
	if c.NArg() != 1 {
		return fmt.Errorf("want one image, got %d arguments", c.NArg())
	}
	src, err := openImage(c, c.Args().First())
	if err != nil {
		return err
	}
	d, err := seal.Inspect(c.Context, src)
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(c.App.Writer, 0, 8, 2, ' ', 0)
	fmt.Fprintf(w, "digest:\t%s\ntype:\t%s\n", d.Digest, d.MediaType)
	for _, img := range d.Images {
		fmt.Fprintf(w, "\nimage:\t%s\n", img.Digest)
		if img.Platform != "" {
			fmt.Fprintf(w, "platform:\t%s\n", img.Platform)
		}
		fmt.Fprintln(w, "LAYER\tSIZE\tMEDIA TYPE\tENCRYPTED\tKEY")
		for i, l := range img.Layers {
			fmt.Fprintf(w, "%d %s\t%s\t%s\t%s\t%s\n", i, short(l.Digest), size(l.Size), l.MediaType, yes(l.Encrypted), keyColumn(l))
		}
	}
	return w.Flush()
}
