package snapshotter

import (
	"fmt"
	"net/url"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	snlabels "github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

const (
	// maxReference bounds an image reference in bytes. Host, repository, tag and digest at their own limits stay below,
	// and a volume with it stays within volume.MaxOption.
	maxReference = 512
	// maxName bounds a name that is parsed, in bytes.
	maxName = 8 << 10
)

// layerName is the name of a reference-only layer, and at once everything we know about it: containerd remembers the
// name, so that the record can be made again when our database is lost.
//
// It is written as the chain ID, or as the chain ID, a question mark and the known facts in URL query form with sorted
// keys. A name is ours only if writing what was read from it gives the same name again.
type layerName struct {
	// Chain is the chain ID: the target that containerd asked for.
	Chain digest.Digest
	// Reference and Manifest name the image that brought the layer; both may be empty.
	Reference string
	Manifest  digest.Digest
	// Layer is the digest of the layer's blob; it may be empty.
	Layer digest.Digest
	// Top says that the layer was the last one of that image, so that a container on it runs just that image.
	Top bool
	// Twin tells two layers apart that have the same facts and different parents; it is the key that they were
	// prepared by, and nearly always empty.
	Twin string
}

// nameOf reads the facts from the labels of an image layer's Prepare.
func nameOf(labels map[string]string) (layerName, error) {
	n := layerName{Reference: labels[snlabels.TargetRefLabel]}
	if len(n.Reference) > maxReference {
		return n, fmt.Errorf("image reference of %d bytes is longer than %d: %w", len(n.Reference), maxReference, errdefs.ErrInvalidArgument)
	}
	for _, field := range []struct {
		label string
		to    *digest.Digest
		must  bool
	}{
		{snapshots.LabelSnapshotRef, &n.Chain, true},
		{snlabels.TargetManifestDigestLabel, &n.Manifest, false},
		{snlabels.TargetLayerDigestLabel, &n.Layer, false},
	} {
		value := labels[field.label]
		if value == "" && !field.must {
			continue
		}
		d, err := digest.Parse(value)
		if err != nil {
			return n, fmt.Errorf("label %s is %q, not a digest: %w", field.label, value, errdefs.ErrInvalidArgument)
		}
		*field.to = d
	}
	// cri.image-layers lists the image's layers from this one upwards, so the last layer lists itself alone.
	n.Top = n.Reference != "" && !strings.Contains(labels[snlabels.TargetImageLayersLabel], ",")
	return n, nil
}

// String writes the name.
func (n layerName) String() string {
	facts := url.Values{}
	for key, value := range map[string]string{
		"ref": n.Reference, "manifest": n.Manifest.String(), "layer": n.Layer.String(), "twin": n.Twin,
	} {
		if value != "" {
			facts.Set(key, value)
		}
	}
	if n.Top {
		facts.Set("top", "1")
	}
	if len(facts) == 0 {
		return n.Chain.String()
	}
	return n.Chain.String() + "?" + facts.Encode()
}

// parseName reads a name and reports whether it is one of ours.
func parseName(name string) (layerName, bool) {
	if len(name) > maxName {
		return layerName{}, false
	}
	chain, query, _ := strings.Cut(name, "?")
	facts, err := url.ParseQuery(query)
	if err != nil {
		return layerName{}, false
	}
	n := layerName{
		Chain:     digest.Digest(chain),
		Reference: facts.Get("ref"),
		Manifest:  digest.Digest(facts.Get("manifest")),
		Layer:     digest.Digest(facts.Get("layer")),
		Top:       facts.Get("top") == "1",
		Twin:      facts.Get("twin"),
	}
	if len(n.Reference) > maxReference || n.Chain.Validate() != nil {
		return layerName{}, false
	}
	for _, d := range []digest.Digest{n.Manifest, n.Layer} {
		if d != "" && d.Validate() != nil {
			return layerName{}, false
		}
	}
	// This refuses unknown and repeated facts, empty ones, and every other way of writing the same.
	return n, n.String() == name
}

// labels gives the labels that containerd needs to find the layer again, made from the name.
func (n layerName) labels() map[string]string {
	labels := map[string]string{snapshots.LabelSnapshotRef: n.Chain.String()}
	for label, value := range map[string]string{
		snlabels.TargetRefLabel:            n.Reference,
		snlabels.TargetManifestDigestLabel: n.Manifest.String(),
		snlabels.TargetLayerDigestLabel:    n.Layer.String(),
	} {
		if value != "" {
			labels[label] = value
		}
	}
	return labels
}
