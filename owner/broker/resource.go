package broker

import (
	"net/http"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/coffer-project/coffer/owner/broker/audit"
	"github.com/coffer-project/coffer/owner/broker/ear"
	"github.com/coffer-project/coffer/proto/kbs"
)

// release serves GET of a resource to guests: token, policy, store, seal, record, send; in this order, so that a guest which may not have
// a resource does not learn whether it exists, and nothing leaves without a record.
func (b *Broker) release(w http.ResponseWriter, r *http.Request) error {
	uri, err := resourceOf(r)
	if err != nil {
		return err
	}
	rec := audit.Record{Event: audit.EventRelease, Resource: uri.String()}
	sealed, err := b.sealed(r, uri, &rec)
	if err = b.record(r, rec, err); err != nil {
		return err
	}
	b.Metrics.Read(uri.Path())
	w.Header().Set("Content-Type", "application/json")
	if _, err := w.Write(sealed); err != nil {
		log.G(r.Context()).WithField("resource", uri.String()).Info("guest left before it got its resource")
	}
	return nil
}

func (b *Broker) sealed(r *http.Request, uri kbs.ResourceURI, rec *audit.Record) ([]byte, error) {
	claims, err := b.claimsOf(r, rec)
	if err != nil {
		return nil, err
	}
	allowed, reason, err := b.Policy.Allow(r.Context(), claims, uri)
	b.Metrics.Policy(allowed, err)
	if err != nil {
		return nil, broken("the resource policy could not be evaluated", err)
	}
	rec.Reason = reason
	if !allowed {
		return nil, refuse(kbs.KindPolicyDeny, "%s", reason)
	}
	rawKey, err := claims.TEEPublicKey()
	if err != nil {
		return nil, refuse(kbs.KindTokenVerifier, "%s", peerText(err))
	}
	key, err := parseTEEKey(rawKey)
	if err != nil {
		return nil, refuse(kbs.KindTokenVerifier, "%s", peerText(err))
	}
	plain, err := b.Store.Get(r.Context(), uri)
	if errdefs.IsNotFound(err) {
		return nil, missing(kbs.KindNotFound, "no resource %s", uri.Path())
	}
	if err != nil {
		return nil, broken("the resource could not be read", err)
	}
	sealed, err := key.seal(plain)
	if err != nil {
		return nil, broken("the resource could not be sealed", err)
	}
	return sealed, nil
}

// claimsOf returns the verified claims behind a request: of its bearer token, or of its session.
func (b *Broker) claimsOf(r *http.Request, rec *audit.Record) (*ear.Claims, error) {
	token, err := b.tokenOf(r, rec)
	if err != nil {
		return nil, err
	}
	claims, digest, err := b.verified.claims(token)
	if err != nil {
		return nil, refuse(kbs.KindTokenVerifier, "%s", peerText(err))
	}
	rec.ClaimsDigest = digest
	for _, tee := range []kbs.TEE{kbs.TEESNP, kbs.TEETDX, kbs.TEESample} {
		if claims.Has(string(tee)) {
			rec.TEE = string(tee)
		}
	}
	return claims, nil
}

// tokenOf returns the bearer token of a request, or the token of the session that its cookie names.
func (b *Broker) tokenOf(r *http.Request, rec *audit.Record) (string, error) {
	if token, ok := bearer(r); ok {
		return token, nil
	}
	cookie, err := r.Cookie(kbs.SessionCookie)
	if err != nil {
		return "", refuse(kbs.KindTokenNotFound, "request carries neither a token nor the cookie of an attested session")
	}
	rec.Session = audit.SessionID(cookie.Value)
	token, err := b.sessions.token(r.Context(), cookie.Value)
	if errdefs.IsNotFound(err) {
		return "", refuse(kbs.KindTokenNotFound, "session is unknown, not attested or over: attest again")
	}
	if err != nil {
		return "", broken("the session could not be read", err)
	}
	return token, nil
}

func resourceOf(r *http.Request) (kbs.ResourceURI, error) {
	uri := kbs.ResourceURI{Repository: r.PathValue("repository"), Type: r.PathValue("type"), Tag: r.PathValue("tag")}
	if err := uri.Validate(); err != nil || r.URL.RawQuery != "" {
		return kbs.ResourceURI{}, missing(kbs.KindInvalidPath, "resource path is not repository/type/tag of letters, digits, '_', '-' and '.'")
	}
	return uri, nil
}

func bearer(r *http.Request) (string, bool) {
	scheme, token, ok := strings.Cut(r.Header.Get("Authorization"), " ")
	if !ok || !strings.EqualFold(scheme, "Bearer") {
		return "", false
	}
	return strings.TrimSpace(token), true
}
