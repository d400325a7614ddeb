package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/urfave/cli/v2"

	"github.com/coffer-project/coffer/guestpull/attest"
	"github.com/coffer-project/coffer/guestpull/decrypt"
	"github.com/coffer-project/coffer/guestpull/image"
	"github.com/coffer-project/coffer/guestpull/kbs"
	"github.com/coffer-project/coffer/guestpull/registry"
	"github.com/coffer-project/coffer/guestpull/signature"
	"github.com/coffer-project/coffer/guestpull/store"
	"github.com/coffer-project/coffer/guestpull/unpack"
	"github.com/coffer-project/coffer/guestpull/unpack/worker"
	"github.com/coffer-project/coffer/guestpull/verify"
	"github.com/coffer-project/coffer/proto/initdata"
	proto "github.com/coffer-project/coffer/proto/kbs"
)

func pullerFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "initdata", Usage: "take registries and key broker from this initdata `FILE`", TakesFile: true},
		&cli.StringSliceFlag{Name: "plain-http", Usage: "talk http to this registry `HOST[:PORT]`; may be repeated"},
		&cli.StringFlag{Name: "ca", Usage: "trust the authorities in this PEM `FILE` for registries beside the system's", TakesFile: true},
		&cli.StringFlag{Name: "kbs-url", Usage: "get keys from the key broker at this `URL`, with sample evidence"},
		&cli.StringFlag{Name: "kbs-ca", Usage: "trust only the authorities in this PEM `FILE` for the broker", TakesFile: true},
		&cli.StringFlag{Name: "key-file", Usage: "use the 32 bytes in this `FILE` for all encrypted layers, instead of a broker", TakesFile: true},
		&cli.DurationFlag{Name: "idle-timeout", Usage: "give a registry up that is silent for so long (default: what the initdata says, or 30s)"},
		&cli.IntFlag{Name: "parallel", Usage: "layers to work on at a time (default: one per processor)"},
	}
}

// workerProgram is what unpacks layers.
var workerProgram = worker.Beside

// newPuller plugs the stages together, over a store in root.
func newPuller(c *cli.Context, root string, tracker *image.Tracker) (*image.Puller, error) {
	document, measured, raw, err := readInitdata(c.String("initdata"))
	if err != nil {
		return nil, err
	}
	keys, err := keySource(c, document, measured, raw)
	if err != nil {
		return nil, err
	}
	var fetch registry.Fetch
	if keys != nil {
		fetch = keys.Resource
	}
	config, err := registry.FromMeasured(document, &measured.Image, fetch)
	if err != nil {
		return nil, err
	}
	if c.IsSet("idle-timeout") {
		config.IdleTimeout = c.Duration("idle-timeout")
	}
	for _, host := range c.StringSlice("plain-http") {
		config.Registries = append(config.Registries, registry.Registry{Prefix: host, PlainHTTP: true})
	}
	ca, err := readOptional(c.String("ca"))
	if err != nil {
		return nil, err
	}
	config.ExtraRoots = append(append(config.ExtraRoots, '\n'), ca...)
	if len(config.ExtraRoots) == 1 {
		config.ExtraRoots = nil
	}
	client, err := registry.New(config)
	if err != nil {
		return nil, err
	}
	s, err := store.Open(root)
	if err != nil {
		return nil, err
	}
	unpackOpts := []unpack.Option{unpack.WithSpace(s.Free)}
	if s.NoDevices() {
		unpackOpts = append(unpackOpts, unpack.WithDevices())
	}
	program, err := workerProgram()
	if err != nil {
		return nil, fmt.Errorf("find own program: %w", err)
	}
	unpacker := worker.New(unpack.New(unpack.DefaultLimits(), unpackOpts...), program, worker.StartProcess)
	opts := []image.Option{image.WithTracker(tracker)}
	judge, err := signature.New(&measured.Image, client, signature.Fetch(fetch))
	if err != nil {
		return nil, err
	}
	if judge != nil {
		opts = append(opts, image.WithSignatures(judge))
	}
	if n := c.Int("parallel"); n > 0 {
		opts = append(opts, image.WithParallel(n))
	}
	return image.New(client, verify.New(verify.DefaultLimits()), decrypt.New(keys),
		unpacker, s, opts...), nil
}

// readInitdata reads a document; no name is an empty one.
func readInitdata(file string) (*initdata.Document, *initdata.CDHConfig, []byte, error) {
	if file == "" {
		return nil, &initdata.CDHConfig{}, nil, nil
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("read initdata: %w", err)
	}
	doc, err := initdata.Parse(raw)
	if err != nil {
		return nil, nil, nil, err
	}
	config, err := initdata.ParseCDH(doc.Data[initdata.KeyCDH])
	return doc, config, raw, err
}

// keySource is where keys come from; nil without a broker and a key file.
func keySource(c *cli.Context, document *initdata.Document, measured *initdata.CDHConfig, raw []byte) (decrypt.KeySource, error) {
	url, ca := c.String("kbs-url"), []byte(nil)
	if file := c.String("key-file"); file != "" {
		if url != "" {
			return nil, errors.New("--kbs-url and --key-file exclude each other")
		}
		return readFileKey(file)
	}
	if url == "" {
		url, ca = measured.KBC.URL, []byte(measured.KBC.Cert)
	}
	if url == "" {
		return nil, nil
	}
	if file := c.String("kbs-ca"); file != "" {
		var err error
		if ca, err = readOptional(file); err != nil {
			return nil, err
		}
	}
	options := kbs.Options{URL: url, CACertPEM: ca, Attester: attest.NewSample(), InitData: raw}
	if c.String("kbs-url") == "" { // as a guest without a TEE would do under this document
		config, err := document.Coffer()
		if err != nil {
			return nil, err
		}
		if !slices.Contains(config.Attestation.TEEs, string(proto.TEESample)) {
			options.Refuse = attest.ErrBare
		}
	}
	return kbs.New(options)
}

// fileKey is one key for everything, for trying images by hand.
type fileKey []byte

func readFileKey(file string) (fileKey, error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read key: %w", err)
	}
	return raw, nil
}

func (k fileKey) Resource(_ context.Context, uri string) ([]byte, error) {
	if _, err := proto.ParseResourceURI(uri); err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	return k, nil
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
