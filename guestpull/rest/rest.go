// Package rest is the endpoint for the pod's own programs: on the pod's loopback they ask the guest for resources of the key broker, for
// its token and for evidence, in the way of Confidential Containers:
//
//	GET /cdh/resource/REPOSITORY/TYPE/TAG                the resource's bytes
//	GET /aa/token?token_type=kbs                         JSON: token, and tee_keypair in PEM
//	GET /aa/evidence?runtime_data=DATA[&encoding=base64] the evidence, JSON
//
// There is none unless the measured document says so, and then the policy is asked about each request. All containers of a pod reach it,
// whatever their user: who may ask is not told apart. The host does not: its connections into the pod exclude the port (package policy).
//
// Work is bounded: connections, requests at a time, sizes and times. Answers never reach logs.
package rest

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/net/netutil"
	"google.golang.org/protobuf/proto"

	"github.com/coffer-project/coffer/proto/aa"
	"github.com/coffer-project/coffer/proto/cdh"
	"github.com/coffer-project/coffer/proto/initdata"
	"github.com/coffer-project/coffer/proto/kbs"
)

// Limits.
const (
	maxConnections = 64
	maxRequests    = 8 // at a time; others wait for their turn
	maxHeader      = 8 << 10
	maxRuntimeData = 64 // bytes, what every TEE's evidence has room for

	headerTimeout  = 5 * time.Second
	idleTimeout    = 30 * time.Second
	requestTimeout = 2 * time.Minute
)

// Broker is the key broker's client.
type Broker interface {
	// Resource returns what uri names.
	Resource(ctx context.Context, uri string) ([]byte, error)
	// Token returns the broker's token and, in PEM, the private key that it is for.
	Token(ctx context.Context) (token string, key []byte, err error)
	// Evidence returns the platform's evidence for at most 64 bytes of data.
	Evidence(ctx context.Context, reportData []byte) (json.RawMessage, error)
}

// Policy decides about requests; package policy's engines are such.
type Policy interface {
	Allow(ctx context.Context, method string, request proto.Message) error
}

// Server is the endpoint.
type Server struct {
	broker Broker
	policy Policy
	serve  []string
	turns  chan struct{}
}

// New returns an endpoint that gives what serve lists; see [initdata.RESTConfig].
func New(broker Broker, policy Policy, serve []string) *Server {
	return &Server{broker: broker, policy: policy, serve: serve, turns: make(chan struct{}, maxRequests)}
}

// Serve answers connections on the listener until ctx ends, and then ends them.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	srv := &http.Server{
		Handler:           s,
		ReadHeaderTimeout: headerTimeout, ReadTimeout: headerTimeout, WriteTimeout: requestTimeout + headerTimeout, IdleTimeout: idleTimeout,
		MaxHeaderBytes: maxHeader,
		BaseContext:    func(net.Listener) context.Context { return ctx },
	}
	defer context.AfterFunc(ctx, func() { _ = srv.Close() })()
	if err := srv.Serve(netutil.LimitListener(l, maxConnections)); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve the pod's programs: %w", err)
	}
	return nil
}

// ServeHTTP implements [http.Handler].
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), requestTimeout)
	defer cancel()
	select {
	case s.turns <- struct{}{}:
		defer func() { <-s.turns }()
	case <-ctx.Done():
		http.Error(w, "too many requests at a time", http.StatusServiceUnavailable)
		return
	}
	kind, body, err := s.answer(ctx, r)
	if err != nil {
		log.G(ctx).WithField("path", clip(r.URL.Path)).WithField("status", status(err)).Info("request of the pod's programs refused or failed")
		http.Error(w, err.Error(), status(err))
		return
	}
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.Header().Set("Cache-Control", "no-store")
	_, _ = w.Write(body) // whoever has hung up does not want it
}

// errMethod is a request other than GET.
var errMethod = errors.New("only GET is answered")

const octets = "application/octet-stream"

// answer returns the answer's media type and bytes.
func (s *Server) answer(ctx context.Context, r *http.Request) (kind string, body []byte, err error) {
	// A web page that a browser in the pod shows must not read answers under a name of its own.
	if host, _, err := net.SplitHostPort(r.Host); err != nil || host != "127.0.0.1" && host != "localhost" {
		return "", nil, fmt.Errorf("the request is for another host: %w", errdefs.ErrPermissionDenied)
	}
	if r.Method != http.MethodGet {
		return "", nil, errMethod
	}
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return "", nil, fmt.Errorf("the query cannot be read: %w", errdefs.ErrInvalidArgument)
	}
	if path, ok := strings.CutPrefix(r.URL.Path, "/cdh/resource/"); ok {
		body, err = s.resource(ctx, path, query)
		return octets, body, err
	}
	switch r.URL.Path {
	case "/aa/token":
		body, err = s.token(ctx, query)
		return "application/json", body, err
	case "/aa/evidence":
		body, err = s.evidence(ctx, query)
		return octets, body, err
	}
	return "", nil, fmt.Errorf("there is no such path: %w", errdefs.ErrNotFound)
}

// allow asks document and policy.
func (s *Server) allow(ctx context.Context, feature, method string, request proto.Message) error {
	if !slices.Contains(s.serve, feature) {
		return fmt.Errorf("the pod's measured document does not list %q (rest.serve in %s): %w", feature, initdata.KeyCoffer, errdefs.ErrNotFound)
	}
	return s.policy.Allow(ctx, method, request)
}

func (s *Server) resource(ctx context.Context, path string, query url.Values) ([]byte, error) {
	uri, err := kbs.ParseResourcePath(path)
	if err != nil {
		return nil, err
	}
	if len(query) > 0 {
		return nil, fmt.Errorf("a resource takes no query: %w", errdefs.ErrInvalidArgument)
	}
	if err := s.allow(ctx, initdata.RESTResource, "GetResource", &cdh.GetResourceRequest{ResourcePath: uri.String()}); err != nil {
		return nil, err
	}
	return s.broker.Resource(ctx, uri.String())
}

func (s *Server) token(ctx context.Context, query url.Values) ([]byte, error) {
	if kind := query.Get("token_type"); kind != "kbs" || len(query) != 1 {
		return nil, fmt.Errorf("want token_type=kbs: %w", errdefs.ErrInvalidArgument)
	}
	if err := s.allow(ctx, initdata.RESTToken, "GetToken", &aa.GetTokenRequest{TokenType: "kbs"}); err != nil {
		return nil, err
	}
	token, key, err := s.broker.Token(ctx)
	if err != nil {
		return nil, err
	}
	return json.Marshal(map[string]string{"token": token, "tee_keypair": string(key)})
}

func (s *Server) evidence(ctx context.Context, query url.Values) ([]byte, error) {
	data := []byte(query.Get("runtime_data"))
	switch encoding := query.Get("encoding"); encoding {
	case "":
	case "base64":
		decoded, err := base64.RawURLEncoding.DecodeString(string(data))
		if err != nil {
			return nil, fmt.Errorf("runtime_data is not base64url without padding: %w", errdefs.ErrInvalidArgument)
		}
		data = decoded
	default:
		return nil, fmt.Errorf("encoding is not base64: %w", errdefs.ErrInvalidArgument)
	}
	if !query.Has("runtime_data") || len(data) > maxRuntimeData {
		return nil, fmt.Errorf("runtime_data is missing, or has more than %d bytes: %w", maxRuntimeData, errdefs.ErrInvalidArgument)
	}
	if err := s.allow(ctx, initdata.RESTEvidence, "GetEvidence", &aa.GetEvidenceRequest{RuntimeData: data}); err != nil {
		return nil, err
	}
	return s.broker.Evidence(ctx, data)
}

// status is the HTTP status for an error.
func status(err error) int {
	switch {
	case errors.Is(err, errMethod):
		return http.StatusMethodNotAllowed
	case errdefs.IsInvalidArgument(err):
		return http.StatusBadRequest
	case errdefs.IsPermissionDenied(err):
		return http.StatusForbidden
	case errdefs.IsNotFound(err):
		return http.StatusNotFound
	case errdefs.IsUnavailable(err):
		return http.StatusServiceUnavailable
	default:
		return http.StatusInternalServerError
	}
}

// clip keeps lines of the log short and plain.
func clip(text string) string {
	if len(text) > 128 {
		text = text[:128]
	}
	return strconv.Quote(text)
}
