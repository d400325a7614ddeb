package seal

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/pkg/reference"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// copyBuffer is how much is moved at a time; ocicrypt's cipher allocates and copies for each read.
const copyBuffer = 1 << 20

// refPattern is host, repository and a tag, a digest or both.
var refPattern = regexp.MustCompile(`^[A-Za-z0-9.\[\]:-]+(/[a-z0-9]+([._-]+[a-z0-9]+)*)+(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(@[a-z0-9]+:[0-9a-f]{32,})?$`)

// RegistryOptions say how a registry is reached.
type RegistryOptions struct {
	// PlainHTTP uses http instead of https.
	PlainHTTP bool
	// CA holds authorities in PEM that are trusted beside the system's.
	CA []byte
	// Credentials returns user and password for a host, or empty strings. May be nil.
	Credentials func(host string) (user, password string, err error)
	// Proxy chooses a proxy for a request. nil means none.
	Proxy func(*http.Request) (*url.URL, error)
}

// Registry is an image in a registry. It is a Source and a Destination.
type Registry struct {
	ref    reference.Spec
	host   docker.RegistryHost
	client *http.Client
}

// NewRegistry names an image in a registry by its full reference.
func NewRegistry(ref string, o RegistryOptions) (*Registry, error) {
	spec, err := reference.Parse(ref)
	if err != nil {
		return nil, fmt.Errorf("parse image reference %q: %w: %w", ref, err, errdefs.ErrInvalidArgument)
	}
	if spec.Object == "" || !refPattern.MatchString(ref) || (!strings.ContainsAny(spec.Hostname(), ".:") && spec.Hostname() != "localhost") {
		return nil, fmt.Errorf("image reference %q is not complete; write it like registry.example:5000/app:1 or docker.io/library/busybox:1: %w", ref, errdefs.ErrInvalidArgument)
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if len(o.CA) > 0 && !pool.AppendCertsFromPEM(o.CA) {
		return nil, fmt.Errorf("CA file holds no PEM certificate: %w", errdefs.ErrInvalidArgument)
	}
	client := &http.Client{Transport: &http.Transport{
		Proxy:                 o.Proxy,
		DialContext:           (&net.Dialer{Timeout: 15 * time.Second}).DialContext,
		TLSClientConfig:       &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:   15 * time.Second,
		ResponseHeaderTimeout: 60 * time.Second,
		MaxIdleConnsPerHost:   8,
	}}
	host := docker.RegistryHost{
		Client:       client,
		Authorizer:   docker.NewDockerAuthorizer(docker.WithAuthClient(client), docker.WithAuthCreds(o.Credentials)),
		Host:         spec.Hostname(),
		Scheme:       "https",
		Path:         "/v2",
		Capabilities: docker.HostCapabilityPull | docker.HostCapabilityResolve | docker.HostCapabilityPush,
	}
	if host.Host == "docker.io" {
		host.Host = "registry-1.docker.io"
	}
	if o.PlainHTTP {
		host.Scheme = "http"
	}
	return &Registry{ref: spec, host: host, client: client}, nil
}

func (r *Registry) String() string { return r.ref.String() }

func (r *Registry) resolver() remotes.Resolver {
	return docker.NewResolver(docker.ResolverOptions{
		Hosts: func(string) ([]docker.RegistryHost, error) { return []docker.RegistryHost{r.host}, nil },
	})
}

// Resolve asks the registry what the reference names.
func (r *Registry) Resolve(ctx context.Context) (ocispec.Descriptor, error) {
	_, desc, err := r.resolver().Resolve(ctx, r.ref.String())
	if err != nil {
		return desc, fmt.Errorf("resolve %s: %w", r.ref, err)
	}
	return desc, nil
}

// Fetch streams content.
func (r *Registry) Fetch(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	fetcher, err := r.resolver().Fetcher(ctx, r.ref.String())
	if err != nil {
		return nil, fmt.Errorf("fetch %s: %w", desc.Digest, err)
	}
	rc, err := fetcher.Fetch(ctx, ocispec.Descriptor{MediaType: desc.MediaType, Digest: desc.Digest, Size: desc.Size})
	if err != nil {
		return nil, fmt.Errorf("fetch %s: %w", desc.Digest, err)
	}
	return rc, nil
}

// Exists asks for a blob.
func (r *Registry) Exists(ctx context.Context, desc ocispec.Descriptor) (bool, error) {
	resp, err := r.send(ctx, http.MethodHead, r.url("blobs", desc.Digest.String()), nil, nil)
	if err != nil {
		return false, err
	}
	resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
		return true, nil
	case http.StatusNotFound:
		return false, nil
	}
	return false, r.refused("look for blob", resp)
}

// Write streams a blob to the registry. Its digest is told at the end, so it need not be known before.
func (r *Registry) Write(ctx context.Context, content io.Reader) (digest.Digest, int64, error) {
	resp, err := r.send(ctx, http.MethodPost, r.url("blobs", "uploads")+"/", nil, nil)
	if err != nil {
		return "", 0, err
	}
	location, err := r.location(resp, http.StatusAccepted)
	if err != nil {
		return "", 0, err
	}
	d := digest.SHA256.Digester()
	body := &source{r: io.TeeReader(onlyReader{content}, d.Hash())}
	resp, err = r.send(ctx, http.MethodPatch, location, map[string]string{"Content-Type": "application/octet-stream"}, body)
	if body.err != nil {
		// The source failed; what the transport made of that says less.
		if err == nil {
			resp.Body.Close()
		}
		return "", 0, body.err
	}
	if err != nil {
		return "", 0, err
	}
	if location, err = r.location(resp, http.StatusAccepted); err != nil {
		return "", 0, err
	}
	u, err := url.Parse(location)
	if err != nil {
		return "", 0, fmt.Errorf("registry %s names no place to finish the upload: %w", r.host.Host, err)
	}
	q := u.Query()
	q.Set("digest", d.Digest().String())
	u.RawQuery = q.Encode()
	resp, err = r.send(ctx, http.MethodPut, u.String(), map[string]string{"Content-Type": "application/octet-stream"}, nil)
	if err != nil {
		return "", 0, err
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		return "", 0, r.refused("finish upload", resp)
	}
	return d.Digest(), body.n, nil
}

// WriteManifest stores a manifest by its digest, or by the tag of the reference.
func (r *Registry) WriteManifest(ctx context.Context, desc ocispec.Descriptor, raw []byte, tagged bool) error {
	name := desc.Digest.String()
	if tag, _, _ := strings.Cut(r.ref.Object, "@"); tagged && tag != "" {
		name = tag
	}
	resp, err := r.send(ctx, http.MethodPut, r.url("manifests", name), map[string]string{"Content-Type": desc.MediaType}, &source{r: bytes.NewReader(raw), size: int64(len(raw))})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		return r.refused("push manifest", resp)
	}
	return nil
}

func (r *Registry) url(parts ...string) string {
	repo := strings.TrimPrefix(r.ref.Locator, r.ref.Hostname()+"/")
	return r.host.Scheme + "://" + r.host.Host + "/v2/" + repo + "/" + strings.Join(parts, "/")
}

// send makes one request, with a second one when the registry asks for credentials and the body can be sent again.
func (r *Registry) send(ctx context.Context, method, target string, header map[string]string, body *source) (*http.Response, error) {
	// Who reads alone need not be allowed to write.
	ctx, err := docker.ContextWithRepositoryScope(ctx, r.ref, method != http.MethodGet)
	if err != nil {
		return nil, fmt.Errorf("push to %s: %w", r.ref, err)
	}
	for attempt := 0; ; attempt++ {
		req, err := http.NewRequestWithContext(ctx, method, target, nil)
		if err != nil {
			return nil, fmt.Errorf("push to %s: %w", r.ref, err)
		}
		for key, value := range header {
			req.Header.Set(key, value)
		}
		if body != nil {
			req.Body, req.ContentLength = io.NopCloser(body), body.length()
		}
		if err := r.host.Authorizer.Authorize(ctx, req); err != nil {
			return nil, fmt.Errorf("log in to registry %s: %w", r.host.Host, err)
		}
		resp, err := r.client.Do(req)
		if err != nil {
			return nil, fmt.Errorf("talk to registry for %s: %w: %w", r.ref, err, errdefs.ErrUnavailable)
		}
		if resp.StatusCode != http.StatusUnauthorized || attempt > 0 || (body != nil && body.n > 0) {
			return resp, nil
		}
		resp.Body.Close()
		if err := r.host.Authorizer.AddResponses(ctx, []*http.Response{resp}); err != nil {
			return nil, fmt.Errorf("registry %s wants credentials for %s: %w: %w", r.host.Host, r.ref.Locator, err, errdefs.ErrUnauthenticated)
		}
	}
}

// location is where an upload goes on.
func (r *Registry) location(resp *http.Response, want int) (string, error) {
	defer resp.Body.Close()
	if resp.StatusCode != want {
		return "", r.refused("upload blob", resp)
	}
	u, err := resp.Location()
	if err != nil {
		return "", fmt.Errorf("registry %s names no place for the upload: %w", r.host.Host, err)
	}
	return u.String(), nil
}

// refused describes an answer that was not the hoped-for one.
func (r *Registry) refused(what string, resp *http.Response) error {
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 512))
	var class error = errdefs.ErrUnknown
	switch resp.StatusCode {
	case http.StatusUnauthorized:
		class = errdefs.ErrUnauthenticated
	case http.StatusForbidden:
		class = errdefs.ErrPermissionDenied
	case http.StatusNotFound:
		class = errdefs.ErrNotFound
	}
	return fmt.Errorf("%s: registry %s answered %s %q: %w", what, r.host.Host, resp.Status, text, class)
}

// source is a request body that remembers what was read of it and why it failed.
type source struct {
	r    io.Reader
	size int64 // 0 when unknown
	n    int64
	err  error
}

func (s *source) length() int64 {
	if s.size == 0 {
		return -1
	}
	return s.size
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	s.n += int64(n)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}

// onlyReader hides everything but Read, so that copies use the buffer that they were given.
type onlyReader struct{ io.Reader }
