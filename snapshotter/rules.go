package snapshotter

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"unicode"

	"github.com/containerd/containerd/v2/core/snapshots"
	snlabels "github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/containerd/errdefs"
)

// Rules say which images the guest pulls and which the host unpacks.
type Rules struct {
	patterns []string
	globs    []*regexp.Regexp
	// withoutReference is the mode of a layer of which nothing is known but its chain ID.
	withoutReference Mode
}

// NewRules makes rules from globs over image references as containerd names them (registry.k8s.io/pause:3.10). In a
// glob, * stands for any run of characters, / included, and ? for one character; everything else stands for itself. All
// faulty globs are reported together.
func NewRules(passthrough []string, withoutReference Mode) (Rules, error) {
	r := Rules{patterns: passthrough, withoutReference: withoutReference}
	var faults []error
	for _, p := range passthrough {
		if p == "" || strings.ContainsFunc(p, func(c rune) bool { return unicode.IsSpace(c) || unicode.IsControl(c) }) {
			faults = append(faults, fmt.Errorf("pattern %q is empty or holds white space, so it can match no image reference: %w", p, errdefs.ErrInvalidArgument))
			continue
		}
		expr := strings.NewReplacer(`\*`, `.*`, `\?`, `.`).Replace(regexp.QuoteMeta(p))
		r.globs = append(r.globs, regexp.MustCompile(`\A`+expr+`\z`))
	}
	return r, errors.Join(faults...)
}

// passes reports whether the host unpacks the image, and by which pattern.
func (r Rules) passes(reference string) (string, bool) {
	for i, g := range r.globs {
		if g.MatchString(reference) {
			return r.patterns[i], true
		}
	}
	return "", false
}

// decide gives the mode of a new snapshot. parent is empty where there is none. See the package comment for the rule.
func (r Rules) decide(labels map[string]string, parent Mode) (Mode, error) {
	if labels[snapshots.LabelSnapshotRef] == "" {
		// A container, or a scratch snapshot of no image: it is what its parent is.
		if parent == ModeReference {
			return ModeReference, nil
		}
		return ModeOverlay, nil
	}
	reference := labels[snlabels.TargetRefLabel]
	pattern, passes := r.passes(reference)
	switch {
	case parent == ModeReference && reference != "" && passes:
		return "", fmt.Errorf("image %s matches the passthrough pattern %q, but its layer %s lies on a layer that is held as a reference only, because an image with the same base was pulled for guests: "+
			"remove that image from this node, or take the pattern out of the configuration: %w",
			reference, pattern, labels[snlabels.TargetLayerDigestLabel], errdefs.ErrFailedPrecondition)
	case parent == ModeReference:
		return ModeReference, nil
	case reference == "":
		return r.withoutReference, nil
	case passes:
		return ModeOverlay, nil
	}
	return ModeReference, nil
}
