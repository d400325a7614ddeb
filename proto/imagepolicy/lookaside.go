package imagepolicy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"go.yaml.in/yaml/v3"
)

// Lookaside is where the OpenPGP signatures of images are: registries have no place for them.
type Lookaside struct {
	// Places returns which images have theirs where.
	Places func(context.Context) (*Places, error)
	// Get returns what is at an http or https address, at most limit bytes. NotFound: nothing is there.
	Get func(ctx context.Context, address string, limit int64) ([]byte, error)
}

// maxPlaces bounds a configuration in bytes.
const maxPlaces = 64 << 10

// Places are the addresses of a containers-registries.d(5) file.
type Places struct {
	fallback string
	scopes   map[string]string
}

// registryNamespace is an entry of the file. What is for writing is read and not used, and attachments are cosign's.
type registryNamespace struct {
	Lookaside   string `yaml:"lookaside"`
	Staging     string `yaml:"lookaside-staging"`
	Older       string `yaml:"sigstore"`
	OlderStage  string `yaml:"sigstore-staging"`
	Attachments *bool  `yaml:"use-sigstore-attachments"`
}

// ParsePlaces reads a containers-registries.d(5) file in YAML or JSON. InvalidArgument: it is malformed, or names a place
// that a guest has not, such as a folder.
func ParsePlaces(raw []byte) (*Places, error) {
	p, err := parsePlaces(raw)
	if err != nil {
		return nil, fmt.Errorf("places of signatures: %w", err)
	}
	return p, nil
}

func parsePlaces(raw []byte) (*Places, error) {
	if len(raw) > maxPlaces {
		return nil, fmt.Errorf("%d bytes, the limit is %d: %w", len(raw), maxPlaces, errdefs.ErrInvalidArgument)
	}
	var file struct {
		Default *registryNamespace           `yaml:"default-docker"`
		Docker  map[string]registryNamespace `yaml:"docker"`
	}
	dec := yaml.NewDecoder(bytes.NewReader(raw))
	dec.KnownFields(true)
	if err := dec.Decode(&file); err != nil {
		return nil, fmt.Errorf("not as containers-registries.d(5) has it: %.200s: %w", strings.ReplaceAll(err.Error(), "\n", " "), errdefs.ErrInvalidArgument)
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("more than one document: %w", errdefs.ErrInvalidArgument)
	}
	p := &Places{scopes: map[string]string{}}
	var err error
	if file.Default != nil {
		if p.fallback, err = file.Default.address(); err != nil {
			return nil, fmt.Errorf("default-docker: %w", err)
		}
	}
	for text, entry := range file.Docker {
		scope, err := parseScope(text)
		if err != nil {
			return nil, err
		}
		if _, twice := p.scopes[scope]; twice || scope == "" {
			return nil, fmt.Errorf("scope %.200q is empty or there twice: %w", text, errdefs.ErrInvalidArgument)
		}
		if p.scopes[scope], err = entry.address(); err != nil {
			return nil, fmt.Errorf("scope %.200q: %w", scope, err)
		}
	}
	return p, nil
}

// address returns what an entry is for; empty: nothing that is read.
func (n *registryNamespace) address() (string, error) {
	text := n.Lookaside
	if text == "" {
		text = n.Older
	}
	if text == "" {
		return "", nil
	}
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return "", fmt.Errorf("lookaside is no address: %w", errdefs.ErrInvalidArgument) // not quoted: it may carry a password
	case u.Scheme == "file":
		return "", fmt.Errorf("lookaside %.200q: a guest has no such files; serve the folder by http or https: %w", text, errdefs.ErrInvalidArgument)
	case (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.Opaque != "":
		return "", fmt.Errorf("lookaside is not http://HOST/PATH or https:// likewise: %w", errdefs.ErrInvalidArgument)
	case u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return "", fmt.Errorf("lookaside must not carry credentials, a query or a fragment: %w", errdefs.ErrInvalidArgument)
	}
	return strings.TrimSuffix(u.String(), "/"), nil
}

// find returns the address for an image, and empty where there is none. Entries without one leave it to those above.
func (p *Places) find(image name) string {
	for _, scope := range image.scopes() {
		if address := p.scopes[scope]; address != "" {
			return address
		}
	}
	return p.fallback
}

// signatureAddress is where the n-th signature of a digest is, counted from 1 (containers/image, "signature access
// protocols").
func signatureAddress(place string, image name, d digest.Digest, n int) string {
	_, path, _ := strings.Cut(image.repository, "/")
	return fmt.Sprintf("%s/%s@%s=%s/signature-%d", place, path, d.Algorithm(), d.Encoded(), n)
}
