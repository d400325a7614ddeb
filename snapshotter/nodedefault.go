package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/coffer-project/coffer/snapshotter/images"
)

// LabelGuestOnly is what the owner of an image sets to keep its layers off every host: as an annotation of the manifest
// or as a label of the configuration (LABEL in a Dockerfile). Every value but "false" means yes.
const LabelGuestOnly = labelPrefix + "guest-only"

// Catalog is what a NodeDefault asks containerd; *images.Client is the real one.
type Catalog interface {
	// Manifest returns the image with the digest.
	Manifest(ctx context.Context, d digest.Digest) (*images.Image, error)
	// Containing returns the images that have a layer with the chain ID.
	Containing(ctx context.Context, chain digest.Digest) ([]*images.Image, error)
	// Names returns what the image with the manifest is called.
	Names(ctx context.Context, manifest digest.Digest) ([]string, error)
	// Has tells whether containerd has the content.
	Has(ctx context.Context, d digest.Digest) (bool, error)
	Close() error
}

// Forgetter makes containerd forget a reference-only layer and all that lies on it, so that the layer is unpacked when
// an image with it is pulled the next time. It returns before that is done: containerd waits for the snapshotter and
// must not be waited for.
type Forgetter interface {
	Forget(ctx context.Context, chain digest.Digest)
	Close() error
}

// NodeDefault decides for a snapshotter that is containerd's default. The package comment has the rule.
type NodeDefault struct {
	catalog   Catalog
	forgetter Forgetter
	guest     Rules
}

// NewNodeDefault makes the rule. patterns are globs as in NewRules, over the images that are for guests although
// nothing about them says so. The snapshotter that it is given to closes the other two with itself.
func NewNodeDefault(catalog Catalog, forgetter Forgetter, patterns []string) (*NodeDefault, error) {
	rules, err := NewRules(patterns, ModeReference)
	if err != nil {
		return nil, err
	}
	return &NodeDefault{catalog: catalog, forgetter: forgetter, guest: rules}, nil
}

// Close lets go of containerd. It must be called once.
func (n *NodeDefault) Close() error { return errors.Join(n.forgetter.Close(), n.catalog.Close()) }

// decide gives the mode of a new snapshot on a parent. Errors are errdefs.ErrFailedPrecondition for what an admin can
// change, ErrUnavailable for a containerd that does not answer.
func (n *NodeDefault) decide(ctx context.Context, labels map[string]string, parent string, below Mode) (Mode, error) {
	if labels[snapshots.LabelSnapshotRef] == "" {
		if below == ModeReference {
			return "", n.refuse(ctx, parent)
		}
		return ModeOverlay, nil
	}
	name, err := nameOf(labels)
	if err != nil {
		return "", err
	}
	mode, err := n.modeOfLayer(ctx, name)
	if err != nil || mode == ModeReference || below != ModeReference {
		return mode, err
	}
	if under, ok := parseName(parent); ok {
		n.forgetter.Forget(ctx, under.Chain)
	}
	return "", fmt.Errorf("image %s is for this host, but an image for guests with the same lower layers was pulled before, "+
		"so that the host does not have them. What stands in the way is being removed: pull the image again: %w",
		named(name.Reference), errdefs.ErrUnavailable)
}

// modeOfLayer decides by the image that containerd names. Where it names none it unpacks an image that it has, or pulls
// with snapshot annotations switched off; then every image with the layer is looked at.
func (n *NodeDefault) modeOfLayer(ctx context.Context, layer layerName) (Mode, error) {
	if layer.Manifest != "" {
		image, err := n.catalog.Manifest(ctx, layer.Manifest)
		if err != nil {
			return "", fmt.Errorf("find out whether image %s is for guests: %w", named(layer.Reference), err)
		}
		if why := n.forGuests(image, []string{layer.Reference}); why != "" {
			return ModeReference, nil
		}
		return ModeOverlay, nil
	}
	found, err := n.catalog.Containing(ctx, layer.Chain)
	if err != nil {
		return "", fmt.Errorf("find out whether layer %s is for guests: %w", layer.Chain, err)
	}
	return n.modeAmong(ctx, layer.Chain, found)
}

// modeAmong decides where it is not known which image is meant. One that can be unpacked here and now is: its content
// is on the host already. Else the layer is left to the guests that want it.
func (n *NodeDefault) modeAmong(ctx context.Context, chain digest.Digest, found []*images.Image) (Mode, error) {
	absent, forGuests := "", false
	for _, image := range found {
		names, err := n.catalog.Names(ctx, image.Manifest)
		if err != nil {
			return "", fmt.Errorf("find out whether image %s is for guests: %w", image.Manifest, err)
		}
		if n.forGuests(image, names) != "" {
			forGuests = true
			continue
		}
		has, err := n.catalog.Has(ctx, image.Layers[slices.Index(image.Chains, chain)].Digest)
		switch {
		case err != nil:
			return "", fmt.Errorf("look for layer %s of image %s: %w", chain, image.Manifest, err)
		case has, len(names) == 0: // without a name yet, it is just being pulled
			return ModeOverlay, nil
		}
		absent = shortest(names)
	}
	switch {
	case forGuests:
		return ModeReference, nil
	case absent != "":
		return "", fmt.Errorf("image %[1]s was pulled for guests, so that its layers are not on this host. Pull it again for the host: "+
			"crictl pull %[1]s, or imagePullPolicy: Always. (If this very pull failed so, containerd does not say what it pulls: "+
			"set enable_remote_snapshot_annotations in the proxy plugin's exports): %[2]w", absent, errdefs.ErrFailedPrecondition)
	}
	return "", fmt.Errorf("containerd has no image with layer %s, so nothing tells whether it is for guests: pull the image again: %w",
		chain, errdefs.ErrFailedPrecondition)
}

// forGuests tells why an image is for guests only; empty if it is not.
func (n *NodeDefault) forGuests(image *images.Image, names []string) (why string) {
	if why := guestOnly(image); why != "" {
		return why
	}
	for _, name := range names {
		if pattern, ok := n.guest.passes(name); ok {
			return fmt.Sprintf("pattern %q in the snapshotter's configuration matches %s", pattern, name)
		}
	}
	return ""
}

// guestOnly tells by what in an image it is for guests only; empty if by nothing.
func guestOnly(image *images.Image) (why string) {
	for _, layer := range image.Layers {
		if layer.Encrypted() {
			return fmt.Sprintf("layer %s is encrypted", layer.Digest)
		}
	}
	if value, ok := image.Annotations[LabelGuestOnly]; ok && value != "false" {
		return fmt.Sprintf("annotation %s of its manifest is %q", LabelGuestOnly, value)
	}
	if value, ok := image.Config.Labels[LabelGuestOnly]; ok && value != "false" {
		return fmt.Sprintf("its label %s is %q", LabelGuestOnly, value)
	}
	return ""
}

// refuse says why no root file system can stand on a reference-only layer: whoever asks is no runtime for guests, since
// their handler has a snapshotter of its own.
func (n *NodeDefault) refuse(ctx context.Context, parent string) error {
	layer, _ := parseName(parent)
	found, err := n.catalog.Containing(ctx, layer.Chain)
	if err != nil && !errdefs.IsUnavailable(err) {
		return fmt.Errorf("find the image of layer %s, which is left to guests: %w", layer.Chain, err)
	}
	why := ""
	for _, image := range found {
		if image.Top() != layer.Chain {
			continue
		}
		names, unnamed := n.catalog.Names(ctx, image.Manifest)
		reason := n.forGuests(image, names)
		if reason == "" && unnamed == nil {
			n.forgetter.Forget(ctx, layer.Chain)
			return fmt.Errorf("image %[1]s is for this host, but one for guests with the same layers was pulled before, so that the host does not have them. "+
				"What stands in the way is being removed: pull the image again (crictl pull %[1]s): %[2]w", shortest(names), errdefs.ErrFailedPrecondition)
		}
		if reason != "" {
			why = fmt.Sprintf("image %s is for guests only (%s)", shortest(names), reason)
		}
	}
	if why == "" {
		why = fmt.Sprintf("image %s is for guests only", named(layer.Reference))
	}
	return fmt.Errorf("%s, so that the host has none of its files: run it in a pod whose runtimeClassName selects the handler of Coffer: %w",
		why, errdefs.ErrFailedPrecondition)
}

func named(reference string) string {
	if reference == "" {
		return "(without a name)"
	}
	return reference
}

// shortest picks the name that a user would know: a tag rather than digests.
func shortest(names []string) string {
	names = slices.DeleteFunc(slices.Clone(names), func(name string) bool { return strings.HasPrefix(name, "sha256:") })
	if len(names) == 0 {
		return named("")
	}
	return slices.MinFunc(names, func(a, b string) int { return len(a) - len(b) })
}
