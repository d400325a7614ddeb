package registrytest

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/coffer-project/coffer/integration/testcert"
)

// Request is one line of the registry's log.
type Request struct {
	Time   time.Time `json:"time"`
	Client string    `json:"client"` // address without the port
	Method string    `json:"method"`
	Repo   string    `json:"repository"`
	Kind   Kind      `json:"kind"`
	Object string    `json:"object"` // tag or digest
	Range  string    `json:"range,omitempty"`
	Status int       `json:"status"` // 0 while the request is being answered
	part   string
}

// Registry is a registry in memory. The zero value is not usable; see New.
type Registry struct {
	mu        sync.Mutex
	manifests map[string]object // repo@digest and repo:tag
	blobs     map[digest.Digest][]byte
	kinds     map[digest.Digest]Kind
	uploads   map[string][]byte
	serial    int
	faults    []*Fault
	log       []Request
	user      string
	password  string
	lists     bool // the referrers API is served
	pageSize  int

	closed chan struct{}
	server *http.Server
	addr   string
	ca     []byte
}

type object struct {
	mediaType string
	raw       []byte
}

// New returns an empty registry that listens nowhere yet.
func New() *Registry {
	return &Registry{
		manifests: map[string]object{}, blobs: map[digest.Digest][]byte{}, kinds: map[digest.Digest]Kind{},
		uploads: map[string][]byte{}, closed: make(chan struct{}),
	}
}

// T is what is needed of a *testing.T.
type T interface {
	Helper()
	Fatalf(format string, args ...any)
	Cleanup(func())
}

// Start returns a registry on a loopback port, without TLS, that is closed at the end of the test.
func Start(t T) *Registry {
	t.Helper()
	r := New()
	if err := r.Listen("127.0.0.1:0"); err != nil {
		t.Fatalf("start registry: %v", err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// StartTLS is Start with TLS; CA has the authority to trust.
func StartTLS(t T) *Registry {
	t.Helper()
	r := New()
	if err := r.ListenTLS("127.0.0.1:0"); err != nil {
		t.Fatalf("start registry: %v", err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// Listen serves http on an address, for example that of a bridge. ":0" ports are chosen by the kernel.
func (r *Registry) Listen(addr string) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	r.serve(l)
	return nil
}

// ListenTLS serves https with a certificate for the address and the extra names.
func (r *Registry) ListenTLS(addr string, names ...string) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	host, _, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		l.Close()
		return err
	}
	authority, err := testcert.New("registrytest authority")
	if err != nil {
		l.Close()
		return err
	}
	cert, err := authority.Issue(append(names, host, "localhost")...)
	if err != nil {
		l.Close()
		return err
	}
	r.ca = authority.PEM
	r.serve(tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}))
	return nil
}

func (r *Registry) serve(l net.Listener) {
	r.addr = l.Addr().String()
	r.server = &http.Server{Handler: r, ReadHeaderTimeout: 10 * time.Second}
	go func() {
		if err := r.server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			panic(fmt.Sprintf("registrytest: %v", err))
		}
	}()
}

// Addr is host:port, which is also how references to this registry begin.
func (r *Registry) Addr() string { return r.addr }

// CA is the authority of a registry with TLS, in PEM.
func (r *Registry) CA() []byte { return r.ca }

// Ref is a reference to a tag or a digest in this registry.
func (r *Registry) Ref(repo, object string) string {
	if _, err := digest.Parse(object); err == nil {
		return r.addr + "/" + repo + "@" + object
	}
	return r.addr + "/" + repo + ":" + object
}

// Close ends all requests.
func (r *Registry) Close() error {
	select {
	case <-r.closed:
		return nil
	default:
		close(r.closed)
	}
	if r.server == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if r.server.Shutdown(ctx) == nil {
		return nil
	}
	return r.server.Close()
}

// RequireLogin makes the registry answer 401 to requests without this user and password.
func (r *Registry) RequireLogin(user, password string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.user, r.password = user, password
}

// Put adds an image under a tag; an empty tag adds it by digest only. It returns the reference.
func (r *Registry) Put(repo, tag string, img *Image) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	maps.Copy(r.blobs, img.Blobs)
	for d, desc := range img.Manifests {
		r.putManifest(repo, d.String(), desc.MediaType, img.raws[d])
	}
	r.putManifest(repo, img.Desc.Digest.String(), img.Desc.MediaType, img.Raw)
	if tag == "" {
		return r.Ref(repo, img.Desc.Digest.String())
	}
	r.putManifest(repo, tag, img.Desc.MediaType, img.Raw)
	return r.Ref(repo, tag)
}

// putManifest also learns which blobs are configurations and which are layers.
func (r *Registry) putManifest(repo, name, mediaType string, raw []byte) {
	o := object{mediaType: mediaType, raw: raw}
	r.manifests[repo+":"+name] = o
	r.manifests[repo+":"+digest.FromBytes(raw).String()] = o
	var m struct {
		Config struct{ Digest digest.Digest }
		Layers []struct{ Digest digest.Digest }
	}
	if json.Unmarshal(raw, &m) != nil {
		return
	}
	if m.Config.Digest != "" {
		r.kinds[m.Config.Digest] = Config
	}
	for _, l := range m.Layers {
		r.kinds[l.Digest] = LayerBlob
	}
}

// PutBlob stores bytes under any digest, also a wrong one.
func (r *Registry) PutBlob(d digest.Digest, raw []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.blobs[d] = raw
}

// PutManifest stores a document under a tag or any digest, also a wrong one.
func (r *Registry) PutManifest(repo, name, mediaType string, raw []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.putManifest(repo, name, mediaType, raw)
}

// GetManifest returns what a tag or digest names.
func (r *Registry) GetManifest(repo, name string) (mediaType string, raw []byte, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	o, ok := r.manifests[repo+":"+name]
	return o.mediaType, o.raw, ok
}

// GetBlob returns a blob.
func (r *Registry) GetBlob(d digest.Digest) ([]byte, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	raw, ok := r.blobs[d]
	return raw, ok
}

// Requests returns the log.
func (r *Registry) Requests() []Request {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]Request(nil), r.log...)
}

// Count counts the log's requests of a kind and method; empty means any.
func (r *Registry) Count(kind Kind, method string) int {
	n := 0
	for _, q := range r.Requests() {
		if (kind == "" || q.Kind == kind) && (method == "" || q.Method == method) {
			n++
		}
	}
	return n
}
