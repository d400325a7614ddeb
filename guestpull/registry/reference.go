package registry

import (
	"fmt"
	"strings"

	"github.com/containerd/containerd/v2/pkg/reference"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/coffer-project/coffer/proto/lazyregexp"
)

// The parts of a reference as the distribution protocol defines them; they become paths of requests.
var (
	hostPattern = lazyregexp.New(`^([A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?$`)
	repoPattern = lazyregexp.New(`^[a-z0-9]+([._-]+[a-z0-9]+)*(/[a-z0-9]+([._-]+[a-z0-9]+)*)*$`)
	tagPattern  = lazyregexp.New(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$`)
)

// parseReference reads a full reference: host/repository:tag, host/repository@digest, or both tag and digest.
func parseReference(ref string) (reference.Spec, error) {
	const limit = 1024
	if len(ref) > limit {
		return reference.Spec{}, fmt.Errorf("image reference has %d bytes, the limit is %d: %w", len(ref), limit, errdefs.ErrInvalidArgument)
	}
	spec, err := reference.Parse(ref)
	if err != nil {
		return reference.Spec{}, fmt.Errorf("parse image reference %q: %w: %w", ref, err, errdefs.ErrInvalidArgument)
	}
	if spec.Object == "" {
		return reference.Spec{}, fmt.Errorf("image reference %q has neither tag nor digest: %w", ref, errdefs.ErrInvalidArgument)
	}
	host := spec.Hostname()
	if !strings.ContainsAny(host, ".:") && host != "localhost" {
		return reference.Spec{}, fmt.Errorf("image reference %q does not start with a registry host; write it in full, like docker.io/library/busybox:1: %w",
			ref, errdefs.ErrInvalidArgument)
	}
	tag, dgst, pinned := strings.Cut(spec.Object, "@")
	repo, whole := strings.CutPrefix(spec.Locator, host+"/")
	// The text must be nothing but these parts: no user, no query.
	if !whole || spec.String() != ref || !hostPattern.MatchString(host) || !repoPattern.MatchString(repo) || (tag != "" && !tagPattern.MatchString(tag)) ||
		(pinned && digest.Digest(dgst).Validate() != nil) {
		return reference.Spec{}, fmt.Errorf("image reference %q is malformed, want host/repository with a tag, a digest or both: %w", ref, errdefs.ErrInvalidArgument)
	}
	return spec, nil
}
