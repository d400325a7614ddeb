package main

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"github.com/containerd/log"

	"github.com/coffer-project/coffer/guestpull/attest"
	"github.com/coffer-project/coffer/guestpull/container"
	"github.com/coffer-project/coffer/guestpull/container/reap"
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
)

// retention is how long layers stay without a container: longer than kubelet pauses between two starts of one, which is up to
// five minutes.
const retention = 10 * time.Minute

// newImages makes the puller as the measured document says. Without a document there is no key broker: then encrypted layers are
// refused, and plain ones come from where their names say.
//
// Pulls outlive the calls that began them, and layers their containers, until the next attempt to create one.
func newImages(ctx context.Context, s settings) (container.Images, error) {
	document, measured, err := readMeasured(s.initdata)
	if err != nil {
		return nil, err
	}
	keys, err := newKeys(ctx, measured, s)
	if err != nil {
		return nil, err
	}
	if err := setSecrets(s.secrets, document, keys); err != nil {
		return nil, err
	}
	if err := serveREST(ctx, s, document, keys); err != nil {
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
	if s.proxy != "" && config.Proxy == nil {
		config.Proxy = registry.Proxies(s.proxy, s.proxy, s.noProxy)
	}
	client, err := registry.New(config)
	if err != nil {
		return nil, err
	}
	pulling, err := imageOptions(ctx, s, measured, client, fetch)
	if err != nil {
		return nil, err
	}
	dir := measured.Image.WorkDir
	if !s.init {
		dir = filepath.Join(s.base, "image") // a development machine keeps its own files as they are
	}
	places := []store.Option{store.WithRetention(retention)}
	if s.scratch != "" {
		places = append(places, store.WithDisk(filepath.Join(s.scratch, "image")))
	}
	layers, err := store.Open(dir, places...)
	if err != nil {
		return nil, err
	}
	// An image that does not fit is refused while there is still memory to say so.
	options := []unpack.Option{unpack.WithSpace(layers.Room)}
	if layers.NoDevices() {
		options = append(options, unpack.WithDevices())
	}
	program, err := worker.Beside()
	if err != nil {
		return nil, err
	}
	unpacker := worker.New(unpack.New(unpack.DefaultLimits(), options...), program, reap.New().Start)
	puller := image.New(client, verify.New(verify.DefaultLimits()), decrypt.New(keys), unpacker, layers, pulling...)
	if err := attestGPUs(s, document, keys); err != nil {
		return nil, err
	}
	return image.NewBackground(ctx, puller, s.pullLimit), nil
}

// imageOptions is how the document wants images to be pulled, and which of them.
func imageOptions(ctx context.Context, s settings, measured *initdata.CDHConfig, client *registry.Client, fetch registry.Fetch) ([]image.Option, error) {
	options := []image.Option{image.WithParallel(measured.Image.ParallelLayers), image.WithTracker(s.pulls)}
	judge, err := signature.New(&measured.Image, client, signature.Fetch(fetch))
	if err != nil {
		return nil, err
	}
	if judge == nil {
		log.G(ctx).Info("no image security policy is configured: images are pulled by digest, whoever made them")
		return options, nil
	}
	return append(options, image.WithSignatures(judge)), nil
}

// newKeys returns the key broker's client, or nil when the document names none.
func newKeys(ctx context.Context, measured *initdata.CDHConfig, s settings) (decrypt.KeySource, error) {
	if measured.KBC.URL == "" {
		log.G(ctx).Info("no key broker is configured: encrypted images will be refused")
		return nil, nil
	}
	// A guest with GPUs is attested with them or not at all, so that images wait for the driver, too.
	devices, err := s.gpus.Devices(ctx)
	if err != nil {
		return nil, err
	}
	options := kbs.Options{URL: measured.KBC.URL, CACertPEM: []byte(measured.KBC.Cert), Attester: s.platform, Devices: devices, InitData: s.initdata}
	switch s.platform.(type) {
	case attest.Bare:
		log.G(ctx).WithError(attest.ErrBare).Warn("the key broker will not be asked for anything")
		options.Refuse = attest.ErrBare
	case *attest.Sample:
		// A broker tells a sample guest from a real one and releases only what it would give anybody.
		log.G(ctx).Warn("this guest cannot prove what it is: sample evidence is for development")
	}
	client, err := kbs.New(options)
	if err != nil {
		return nil, fmt.Errorf("set up key broker: %w", err)
	}
	return client, nil
}

// readMeasured reads what the document says about images and keys; a nil document says nothing.
func readMeasured(raw []byte) (*initdata.Document, *initdata.CDHConfig, error) {
	if raw == nil {
		measured, err := initdata.ParseCDH("")
		return nil, measured, err
	}
	document, err := initdata.Parse(raw)
	if err != nil {
		return nil, nil, err
	}
	measured, err := initdata.ParseCDH(document.Data[initdata.KeyCDH])
	if err != nil {
		return nil, nil, err
	}
	if text, has := document.Data[initdata.KeyAA]; has {
		aa, err := initdata.ParseAA(text)
		if err != nil {
			return nil, nil, err
		}
		if broker := aa.TokenConfigs.KBS; broker != nil && measured.KBC.URL == "" {
			measured.KBC.URL, measured.KBC.Cert = broker.URL, broker.Cert
		}
	}
	return document, measured, nil
}
