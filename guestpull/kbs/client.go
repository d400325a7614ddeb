package kbs

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/guestpull/attest"
	proto "github.com/coffer-project/coffer/proto/kbs"
)

// Options say whom to ask and how to prove what the guest is.
type Options struct {
	// URL is the broker's base URL, for example https://kbs.example:8443. Plain http is used only when the URL says http: resources are
	// sealed for the attested key either way, but then anybody on the path may answer in the broker's place.
	URL string
	// CACertPEM, when not empty, holds the only CAs that may sign the broker's certificate. Empty means the system's.
	CACertPEM []byte
	// Attester gives the evidence. Required.
	Attester attest.Attester
	// Refuse, when not nil, is why this guest has no evidence to send. Every call that would need some returns it, and nobody is asked.
	Refuse error
	// Devices give the evidence of the guest's devices, one entry for each kind. All of it goes along with each attestation, and without it
	// there is none: what was not appraised must not pass for a part of a guest that was.
	Devices []attest.DeviceAttester
	// InitData is the measured document's text, sent along so that the broker's policy can look into it. Empty sends none.
	InitData []byte
	// HTTPClient replaces the client's own, for tests; CACertPEM must then be empty. Its redirect rule is overridden.
	HTTPClient *http.Client
	// Backoff is the pause before the second attempt of a handshake or fetch; it doubles for each further one. Zero means 200 ms.
	Backoff time.Duration
	// AttemptTimeout bounds one HTTP exchange. Zero means 30 s.
	AttemptTimeout time.Duration
}

// Client asks one broker for one pod. Its methods may be called concurrently.
type Client struct {
	base     string // without trailing slash
	name     string // base for messages
	http     *http.Client
	attester attest.Attester
	devices  []attest.DeviceAttester
	tee      proto.TEE
	refuse   error
	initData string
	backoff  time.Duration
	timeout  time.Duration

	session *flight[*session]

	mu      sync.Mutex
	timings Timings
}

// Timings says what the client's exchanges cost so far.
type Timings struct {
	// Attest is the sum over successful handshakes, Fetch that over resource requests without the handshakes that they caused.
	Attest, Fetch time.Duration
	// Handshakes and Fetches count the successful ones.
	Handshakes, Fetches int
}

// New returns a client; it does not connect. Faults in the options are InvalidArgument.
func New(o Options) (*Client, error) {
	base, err := parseURL(o.URL)
	if err != nil {
		return nil, err
	}
	if o.Attester == nil {
		return nil, fmt.Errorf("key broker client needs an attester: %w", errdefs.ErrInvalidArgument)
	}
	tee := proto.TEE(o.Attester.TEE())
	if err := tee.Validate(); err != nil {
		return nil, fmt.Errorf("key broker client: %w", err)
	}
	kinds := map[string]bool{}
	for _, d := range o.Devices {
		if kinds[d.Device()] {
			return nil, fmt.Errorf("key broker client has two attesters for devices %s: %w", d.Device(), errdefs.ErrInvalidArgument)
		}
		kinds[d.Device()] = true
	}
	httpClient, err := newHTTPClient(o, base)
	if err != nil {
		return nil, err
	}
	c := &Client{
		base:     strings.TrimSuffix(base.String(), "/"),
		name:     base.Scheme + "://" + base.Host,
		http:     httpClient,
		attester: o.Attester,
		devices:  o.Devices,
		tee:      tee,
		refuse:   o.Refuse,
		initData: string(o.InitData),
		backoff:  o.Backoff,
		timeout:  o.AttemptTimeout,
		session:  newFlight[*session](),
	}
	if c.backoff <= 0 {
		c.backoff = 200 * time.Millisecond
	}
	if c.timeout <= 0 {
		c.timeout = 30 * time.Second
	}
	return c, nil
}

func parseURL(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	switch {
	case err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "":
		return nil, fmt.Errorf("key broker URL is not http://host or https://host: %w", errdefs.ErrInvalidArgument)
	case u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return nil, fmt.Errorf("key broker URL of host %s carries credentials, a query or a fragment: %w", u.Host, errdefs.ErrInvalidArgument)
	}
	return u, nil
}

// Resource returns the plain bytes of the resource that uri (kbs:///repository/type/tag) names, as the broker has it now: it is for the
// caller to keep it, and to ask again when it may have been replaced. The first call attests. An address inside uri is ignored: a guest
// asks only the broker that its measured document names. Errors are of type *Error, InvalidArgument for a malformed uri, or the context's.
func (c *Client) Resource(ctx context.Context, uri string) ([]byte, error) {
	resource, err := proto.ParseResourceURI(uri)
	if err != nil {
		return nil, err
	}
	resource.Address = ""
	value, err := c.fetch(ctx, resource)
	if err != nil {
		if ctx.Err() != nil {
			return nil, fmt.Errorf("fetch resource %s from key broker %s: %w", resource, c.name, err)
		}
		return nil, err
	}
	return value, nil
}

// Token returns the broker's token on this guest, and in PEM (PKCS #8) the private key whose public half is in it: whoever has both can ask
// in the guest's name until the token ends. Errors are those of Resource.
func (c *Client) Token(ctx context.Context) (token string, key []byte, err error) {
	s, err := c.attested(ctx, nil)
	if err != nil {
		return "", nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(s.key.private)
	if err != nil {
		return "", nil, fmt.Errorf("encode session key: %w", err)
	}
	return s.token, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// Evidence returns the attester's evidence with reportData bound into it; see [attest.Attester].
func (c *Client) Evidence(ctx context.Context, reportData []byte) (json.RawMessage, error) {
	return c.attester.Evidence(ctx, reportData)
}

// Timings returns the durations so far.
func (c *Client) Timings() Timings {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.timings
}
