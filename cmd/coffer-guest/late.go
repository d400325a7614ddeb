package main

import (
	"context"
	"encoding/hex"
	"fmt"
	"os"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/coffer-project/coffer/guestpull/attest"
	"github.com/coffer-project/coffer/guestpull/boot"
	"github.com/coffer-project/coffer/guestpull/container"
	"github.com/coffer-project/coffer/guestpull/extension"
	"github.com/coffer-project/coffer/guestpull/image"
	"github.com/coffer-project/coffer/guestpull/policy"
	"github.com/coffer-project/coffer/guestpull/transport"
	"github.com/coffer-project/coffer/proto/initdata"
)

// lateImages is the puller before it is known how to pull.
type lateImages struct {
	limit  time.Duration // of one pull
	known  chan struct{}
	images container.Images // valid once known is closed
}

func newLateImages(limit time.Duration) *lateImages {
	return &lateImages{limit: limit, known: make(chan struct{})}
}

// set makes the puller known. Call it once.
func (l *lateImages) set(images container.Images) {
	l.images = images
	close(l.known)
}

// Pull waits until the puller is known. It takes no longer than the limit, whatever the host would wait.
func (l *lateImages) Pull(ctx context.Context, req image.Request) (*image.Image, error) {
	caller := ctx
	ctx, cancel := context.WithTimeout(ctx, l.limit)
	defer cancel()
	select {
	case <-l.known:
		img, err := l.images.Pull(ctx, req)
		if err != nil && ctx.Err() != nil && caller.Err() == nil {
			err = fmt.Errorf("not done within %s (kernel parameter agent.image_pull_timeout): %w", l.limit, err)
		}
		return img, err
	case <-ctx.Done():
		return nil, fmt.Errorf("pull image %s: wait for the measured document: %w", req.Reference, ctx.Err())
	}
}

// Release has nothing to do before the first pull.
func (l *lateImages) Release(ctx context.Context, containerID string) error {
	select {
	case <-l.known:
		return l.images.Release(ctx, containerID)
	default:
		return nil
	}
}

// scratchDir is where the scratch disk is mounted.
const scratchDir = "/run/scratch"

// noImages is the puller of a guest that lacks something.
type noImages struct{ err error }

// Pull says what.
func (n noImages) Pull(context.Context, image.Request) (*image.Image, error) { return nil, n.err }

// Release has nothing to do.
func (noImages) Release(context.Context, string) error { return nil }

// configure reads the measured document while the host is already served: its disk may appear late, and only what a policy decides
// about waits for it. A guest whose document is bad must not go on with half of it: it refuses everything, and says why. One whose machine
// is bad ends.
func configure(ctx context.Context, m *boot.Machine, s settings, images *lateImages, engine *policy.Late) {
	begin := time.Now()
	refuse := func(err error) {
		log.G(ctx).Error("every request is refused, with this reason: the measured document or an extension cannot be used")
		engine.Set(policy.NewDenied(err))
		images.set(noImages{err})
		s.gpus.Refuse(err)
	}
	var err error
	var extensions []*extension.Extension
	if s.platform, s.initdata, err = measuredDocument(ctx, m); err == nil {
		extensions, err = m.Extensions(ctx)
	}
	if errdefs.IsFailedPrecondition(err) {
		refuse(err)
		return
	}
	if err != nil {
		m.PowerOff(err)
	}
	document, _, err := readMeasured(s.initdata)
	if err == nil {
		err = document.CheckTEE(s.platform.Kind())
	}
	if err != nil {
		refuse(err)
		return
	}
	decide, err := newPolicy(ctx, document)
	if err != nil {
		refuse(err)
		return
	}
	engine.Set(decide)
	m.AddPhase("policy", time.Since(begin))
	if err := m.WaitComplete(ctx); err != nil {
		m.PowerOff(err)
	}
	found, err := m.Scratch(ctx, scratchDir)
	if found && err == nil {
		s.scratch = scratchDir
	}
	s.place.Set(s.scratch, err)
	if err != nil {
		// The machine is sound, and whoever creates a container learns why there is none.
		log.G(ctx).WithError(err).Error("pod has no scratch disk")
		images.set(noImages{err})
		s.gpus.Refuse(err)
		return
	}
	startGPUs(ctx, m, s.gpus, extensions)
	puller, err := newImages(ctx, s)
	if errdefs.IsInvalidArgument(err) || errdefs.IsNotImplemented(err) {
		refuse(err) // what the document says of registries and keys
		return
	}
	if err != nil {
		m.PowerOff(err)
	}
	m.AddPhase("initdata", time.Since(begin))
	images.set(puller)
}

// measuredDocument returns the machine's platform and the document's text, nil when there is none. FailedPrecondition: the document is bad, or
// not the one that the TEE attests, or the platform does not do what the document wants of it.
func measuredDocument(ctx context.Context, m *boot.Machine) (attest.Platform, []byte, error) {
	platform, err := attest.Detect(ctx, os.DirFS("/"), m.WaitDevices)
	if err != nil {
		return nil, nil, err
	}
	document, err := m.InitData(ctx)
	if err != nil {
		return nil, nil, err
	}
	if document != nil {
		forger := func(ctx context.Context) (attest.Platform, error) { return forgedSNP(ctx, m.Params.HotplugTimeout) }
		if platform, err = attest.Substitute(ctx, platform, document.Document, forger); err != nil {
			return nil, nil, fmt.Errorf("%w: %w", err, errdefs.ErrFailedPrecondition)
		}
	}
	raw, err := attestedText(ctx, document, platform)
	return platform, raw, err
}

// forgedSNP is the platform of a guest without a TEE whose document allows that its host plays one.
func forgedSNP(ctx context.Context, limit time.Duration) (attest.Platform, error) {
	log.G(ctx).Warn("the measured document allows a forged SNP processor: this guest cannot prove what it is")
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	port, err := transport.OpenPort(ctx, attest.ForgerPort)
	if err != nil {
		return nil, fmt.Errorf("the measured document wants a forged SNP processor (attestation.tees in %s), and this machine's host plays none: %w", initdata.KeyCoffer, err)
	}
	return attest.NewForged(port), nil
}

// attestedText compares a document, nil for none, with what the TEE attests, and returns its text.
func attestedText(ctx context.Context, document *boot.InitData, platform attest.Platform) ([]byte, error) {
	var raw, digest []byte
	if document != nil {
		raw, digest = document.Raw, document.Digest
	}
	attested, err := attest.CheckInitData(ctx, platform, digest)
	if err != nil {
		return nil, err
	}
	entry := log.G(ctx).WithField("tee", platform.TEE()).WithField("initdata", document != nil).WithField("attested", attested)
	if m, ok := platform.(attest.Measured); ok {
		measurement, err := m.Measurement(ctx)
		if err != nil {
			return nil, err
		}
		// By it an owner finds the guest among those that he has measured.
		entry = entry.WithField("measurement", hex.EncodeToString(measurement))
	}
	entry.Info("measured document read")
	return raw, nil
}
