package image

import (
	"context"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/coffer-project/coffer/proto/imagepolicy"
)

// verdict asks the image security policy.
func (p *Puller) verdict(ctx context.Context, req Request, found *resolved, rec *recorder) error {
	if p.judge == nil {
		return nil
	}
	defer rec.span(phaseVerify)()
	img := imagepolicy.Image{Reference: req.Reference, Manifest: found.digest}
	if found.target != found.digest {
		img.Index = found.target
	} else if !strings.Contains(req.Reference, "@") {
		img.FindIndex = func(ctx context.Context) (digest.Digest, error) { return p.findIndex(ctx, req, found.digest) }
	}
	verdict, err := p.judge.Check(ctx, img)
	if err != nil {
		return err
	}
	found.verdict = *verdict
	return nil
}

// findIndex looks for the index behind the tag of a request whose digest, which the host gave, is that of a manifest. It
// counts only if it names this very manifest for the platform: its signature then covers the manifest, whatever the host
// meant.
func (p *Puller) findIndex(ctx context.Context, req Request, manifest digest.Digest) (digest.Digest, error) {
	target, err := p.registry.Resolve(ctx, req.Reference)
	if err != nil || target == manifest {
		return "", err
	}
	raw, err := p.registry.Manifest(ctx, req.Reference, target, maxDocument)
	if err != nil {
		return "", err
	}
	desc, isIndex, err := p.verifier.Choose(raw, req.Platform)
	if err != nil || !isIndex || desc.Digest != manifest {
		return "", err
	}
	return target, nil
}
