package broker

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/owner/appraise"
	"github.com/coffer-project/coffer/owner/broker/admin"
	"github.com/coffer-project/coffer/owner/broker/audit"
	"github.com/coffer-project/coffer/owner/broker/ear"
	"github.com/coffer-project/coffer/owner/broker/metrics"
	"github.com/coffer-project/coffer/proto/kbs"
)

// Store keeps the resources.
type Store interface {
	// Get returns a resource; one that does not exist is NotFound.
	Get(ctx context.Context, uri kbs.ResourceURI) ([]byte, error)
	// Put creates or replaces a resource durably; one of a wrong size is InvalidArgument.
	Put(ctx context.Context, uri kbs.ResourceURI, data []byte) error
	// Delete removes a resource; one that does not exist is NotFound.
	Delete(ctx context.Context, uri kbs.ResourceURI) error
	// List returns the names of all resources in order.
	List(ctx context.Context) ([]kbs.ResourceURI, error)
}

// Tokens issues and checks attestation results.
type Tokens interface {
	Issue(claims ear.Claims, lifetime time.Duration) (string, *ear.Claims, error)
	Verify(token string) (*ear.Claims, error)
	// CheckTime is for claims that Verify returned earlier.
	CheckTime(claims *ear.Claims) error
}

// Admins checks the bearer tokens of those who may manage the broker.
type Admins interface {
	Verify(token string, now time.Time) (admin.Identity, error)
}

// Recorder keeps the audit log. Where it fails, nothing is released.
type Recorder interface {
	Record(audit.Record) error
}

// Options are the parts and limits of a broker. All fields are required unless they say otherwise.
type Options struct {
	// Verifiers appraise the kinds of TEE that the broker accepts; it refuses all others, so with none it refuses everybody.
	Verifiers []appraise.Verifier
	// Devices verify additional evidence; it may be empty.
	Devices []DeviceVerifier
	Policy  Policy
	// Appraisal may be nil: then the verifiers' verdicts stand.
	Appraisal Appraisal
	Store     Store
	Tokens    Tokens
	// SessionKey seals cookies, SessionKeySize bytes. Brokers behind one address need the same one.
	SessionKey []byte
	// Sessions is for brokers behind one address; nil keeps the attested sessions in memory only.
	Sessions SessionStore
	// Policies and References serve the admin endpoints.
	Policies   PolicyAdmin
	References ReferenceAdmin
	// Metrics may be nil.
	Metrics *metrics.Metrics
	// Admins may be nil: then nobody can change anything over the network.
	Admins Admins
	Audit  Recorder
	// TokenLifetime is how long an attestation counts; SessionLifetime how long a cookie does.
	TokenLifetime, SessionLifetime time.Duration
	// MaxSessions bounds the used sessions that are remembered in memory.
	MaxSessions int
	// RequestsPerSecond and RequestBurst bound the requests of one peer address.
	RequestsPerSecond, RequestBurst int
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Broker is an http.Handler with the endpoints of the protocol.
type Broker struct {
	Options
	verifiers *appraise.Registry
	sessions  *sessions
	verified  *verifiedTokens
	limiter   *limiter
	mux       *http.ServeMux
}

// New returns a broker. Missing parts are InvalidArgument, all of them at once; two verifiers for one TEE are AlreadyExists.
func New(o Options) (*Broker, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if err := o.validate(); err != nil {
		return nil, fmt.Errorf("broker options: %w: %w", errdefs.ErrInvalidArgument, err)
	}
	verifiers, err := appraise.NewRegistry(o.Verifiers...)
	if err != nil {
		return nil, fmt.Errorf("broker options: %w", err)
	}
	sessions, err := newSessions(o.SessionKey, o.MaxSessions, o.SessionLifetime, o.Now, o.Sessions)
	if err != nil {
		return nil, fmt.Errorf("broker options: %w", err)
	}
	b := &Broker{
		Options:   o,
		verifiers: verifiers,
		sessions:  sessions,
		verified:  newVerifiedTokens(o.Tokens),
		limiter:   newLimiter(o.RequestsPerSecond, o.RequestBurst, o.Now),
		mux:       http.NewServeMux(),
	}
	b.routes()
	return b, nil
}

func (o *Options) validate() error {
	var faults []error
	for name, absent := range map[string]bool{
		"Policy": o.Policy == nil, "Policies": o.Policies == nil, "References": o.References == nil, "SessionKey": len(o.SessionKey) == 0, "Store": o.Store == nil, "Tokens": o.Tokens == nil, "Audit": o.Audit == nil,
		"TokenLifetime": o.TokenLifetime <= 0, "SessionLifetime": o.SessionLifetime <= 0, "MaxSessions": o.MaxSessions <= 0,
		"RequestsPerSecond": o.RequestsPerSecond <= 0, "RequestBurst": o.RequestBurst <= 0,
	} {
		if absent {
			faults = append(faults, fmt.Errorf("%s is missing", name))
		}
	}
	return errors.Join(faults...)
}

func (b *Broker) routes() {
	endpoint := func(pattern string, serve func(http.ResponseWriter, *http.Request) error) {
		b.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			reply(r.Context(), w, serve(w, r))
		})
	}
	const resource = kbs.PathResource + "/{repository}/{type}/{tag}"
	endpoint("POST "+kbs.PathAuth, b.auth)
	endpoint("POST "+kbs.PathAttest, b.attest)
	endpoint("GET "+resource, b.release)
	endpoint("POST "+resource, b.put)
	endpoint("PUT "+resource, b.put)
	endpoint("DELETE "+resource, b.delete)
	endpoint("GET "+kbs.PathResource, b.list)
	for _, path := range []string{kbs.PathResourcePolicy, kbs.PathAttestationPolicy} {
		endpoint("POST "+path, b.setPolicy)
		endpoint("GET "+path, b.listPolicies)
		endpoint("GET "+path+"/{id}", b.getPolicy)
	}
	endpoint("DELETE "+kbs.PathResourcePolicy, b.deletePolicy)
	endpoint("DELETE "+kbs.PathAttestationPolicy+"/{id}", b.deletePolicy)
	endpoint("POST "+kbs.PathReferenceValue, b.registerReferences)
	endpoint("GET "+kbs.PathReferenceValue, b.listReferences)
	endpoint("GET "+kbs.PathReferenceValue+"/{name...}", b.getReference)
	endpoint("DELETE "+kbs.PathReferenceValue+"/{name...}", b.deleteReference)
	endpoint("GET "+kbs.PathStatus, b.status)
	endpoint("GET "+kbs.PathReady, b.ready)
	endpoint("/", func(_ http.ResponseWriter, r *http.Request) error {
		return missing(kbs.KindInvalidPath, "no endpoint for %s at this path", r.Method)
	})
	b.mux.HandleFunc("GET "+kbs.PathHealth, func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "ok")
	})
}

// ServeHTTP implements http.Handler.
func (b *Broker) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if r.URL.Path == kbs.PathHealth {
		b.mux.ServeHTTP(w, r)
		return
	}
	b.Metrics.Request(w, r, func(w http.ResponseWriter, r *http.Request) {
		if !b.limiter.allow(peerOf(r)) {
			b.Metrics.Limited()
			reply(r.Context(), w, busy(http.StatusTooManyRequests, "too many requests from this address"))
			return
		}
		b.mux.ServeHTTP(w, r)
	})
}

// record writes an audit record of what err decided and returns err, or a failure where the record cannot be written.
func (b *Broker) record(r *http.Request, rec audit.Record, err error) error {
	rec.Time = b.Now().UTC()
	rec.Remote = peerOf(r)
	rec.Decision = audit.Allowed
	if err != nil {
		rec.Decision = audit.Refused
		if f, ok := errors.AsType[*fault](err); ok {
			rec.Reason = f.detail
		} else {
			rec.Reason = "internal error"
		}
	}
	if auditErr := b.Audit.Record(rec); auditErr != nil {
		return broken("the decision could not be recorded", auditErr)
	}
	return err
}
