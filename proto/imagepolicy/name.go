package imagepolicy

import (
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/coffer-project/coffer/proto/lazyregexp"
)

// The parts of names, as the distribution protocol defines them.
var (
	hostPattern = lazyregexp.New(`^(localhost|[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?$`)
	pathPattern = lazyregexp.New(`^[a-z0-9]+([._-]+[a-z0-9]+)*(/[a-z0-9]+([._-]+[a-z0-9]+)*)*$`)
	tagPattern  = lazyregexp.New(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$`)
)

// maxName bounds a name in bytes.
const maxName = 1024

// name is an image's name in its fully expanded form.
type name struct {
	// repository is host/path. The host is in lower case, and docker.io for all of Docker Hub's names.
	repository string
	// At most one of the two is set: where a name has both, nobody looks at the tag.
	tag    string
	digest digest.Digest
}

// parseName reads host/path with nothing, a tag, a digest or both behind it.
func parseName(text string) (name, error) {
	var n name
	fault := func(why string) (name, error) {
		return name{}, fmt.Errorf("image name %.200q %s: %w", text, why, errdefs.ErrInvalidArgument)
	}
	if len(text) > maxName {
		return fault("is too long")
	}
	rest, pinned, hasDigest := strings.Cut(text, "@")
	if hasDigest {
		if n.digest = digest.Digest(pinned); n.digest.Validate() != nil {
			return fault("has a malformed digest")
		}
	}
	host, path, ok := strings.Cut(rest, "/")
	if !ok || !isHost(host) {
		return fault("is not written in full, like docker.io/library/busybox:1")
	}
	path, tag, hasTag := strings.Cut(path, ":")
	if !pathPattern.MatchString(path) || (hasTag && !tagPattern.MatchString(tag)) {
		return fault("is malformed")
	}
	if !hasDigest {
		n.tag = tag
	}
	n.repository = expand(host, path)
	return n, nil
}

// parseImage reads the name of an image that is to be pulled. It must be the name that the pull uses: a short one of Docker
// Hub would be looked up in the policy under another repository than it is fetched from.
func parseImage(text string) (name, error) {
	n, err := parseName(text)
	if err != nil {
		return n, err
	}
	_, path, _ := strings.Cut(text, "/")
	if strings.HasPrefix(n.repository, "docker.io/library/") && !strings.HasPrefix(path, "library/") {
		return name{}, fmt.Errorf("image name %.200q leaves out library/, write %s: %w", text, n, errdefs.ErrInvalidArgument)
	}
	return n, nil
}

// isHost tells registries from the first part of a short name.
func isHost(host string) bool {
	return hostPattern.MatchString(host) && (strings.ContainsAny(host, ".:") || host == "localhost")
}

// expand gives each repository the one name by which it is compared.
func expand(host, path string) string {
	host = strings.ToLower(host)
	if host == "index.docker.io" {
		host = "docker.io"
	}
	if host == "docker.io" && !strings.Contains(path, "/") {
		path = "library/" + path
	}
	return host + "/" + path
}

// bare tells whether the name is a repository's.
func (n name) bare() bool { return n.tag == "" && n.digest == "" }

func (n name) String() string {
	switch {
	case n.digest != "":
		return n.repository + "@" + n.digest.String()
	case n.tag != "":
		return n.repository + ":" + n.tag
	default:
		return n.repository
	}
}

// scopes lists what requirements for the image may be filed under, the most specific first: the name itself, the
// repository, the namespaces above it, the host, and the domains above that.
func (n name) scopes() []string {
	var list []string
	if !n.bare() {
		list = append(list, n.String())
	}
	for part := n.repository; ; {
		list = append(list, part)
		i := strings.LastIndexByte(part, '/')
		if i < 0 {
			break
		}
		part = part[:i]
	}
	host, _, _ := strings.Cut(n.repository, "/")
	if strings.HasPrefix(host, "[") {
		return list // an address is below no domain
	}
	host, _, _ = strings.Cut(host, ":")
	for {
		_, above, ok := strings.Cut(host, ".")
		if !ok {
			return list
		}
		list = append(list, "*."+above)
		host = above
	}
}

// parseScope brings a scope into the form that scopes has. A scope that could never be looked up is InvalidArgument: its
// requirements would not hold for what their author meant.
func parseScope(text string) (string, error) {
	if text == "" {
		return "", nil
	}
	if domain, ok := strings.CutPrefix(text, "*."); ok {
		if !hostPattern.MatchString(domain) || strings.Contains(domain, ":") {
			return "", fmt.Errorf("scope %.200q: want *.domain: %w", text, errdefs.ErrInvalidArgument)
		}
		return "*." + strings.ToLower(domain), nil
	}
	host, path, more := strings.Cut(text, "/")
	if !more {
		if !isHost(host) {
			return "", fmt.Errorf("scope %.200q is no registry; write names in full, like docker.io/library/busybox: %w", text, errdefs.ErrInvalidArgument)
		}
		return strings.TrimSuffix(expand(host, "x/x"), "/x/x"), nil
	}
	if strings.EqualFold(host, "docker.io") || strings.EqualFold(host, "index.docker.io") {
		// docker.io/team is a namespace, and never docker.io/library/team.
		if isHost(host) && pathPattern.MatchString(path) {
			return "docker.io/" + path, nil
		}
	}
	n, err := parseName(text)
	if err != nil {
		return "", fmt.Errorf("scope: %w", err)
	}
	if n.digest != "" && n.tag == "" && strings.Contains(strings.TrimSuffix(path, "@"+n.digest.String()), ":") {
		return "", fmt.Errorf("scope %.200q has a tag and a digest; write one of them: %w", text, errdefs.ErrInvalidArgument)
	}
	return n.String(), nil
}
