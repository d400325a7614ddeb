package broker

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"

	"github.com/coffer-project/coffer/owner/appraise"
	"github.com/coffer-project/coffer/owner/broker/audit"
	"github.com/coffer-project/coffer/owner/broker/ear"
	"github.com/coffer-project/coffer/proto/kbs"
)

// auth serves POST /auth: it sends the challenge, and the session in a cookie.
func (b *Broker) auth(w http.ResponseWriter, r *http.Request) (retErr error) {
	defer func() { b.Metrics.Auth(retErr) }()
	body, err := readBody(w, r, kbs.MaxRequest)
	if err != nil {
		return err
	}
	tee, err := b.checkRequest(body)
	if err != nil {
		return b.record(r, audit.Record{Event: audit.EventAuth, TEE: string(tee)}, err)
	}
	s, cookie := b.sessions.begin(tee)
	setSession(w, cookie)
	return sendJSON(w, kbs.Challenge{Nonce: s.nonce, ExtraParams: json.RawMessage(`""`)})
}

func (b *Broker) checkRequest(body []byte) (kbs.TEE, error) {
	var request kbs.Request
	if err := kbs.Decode(body, kbs.MaxRequest, &request); err != nil {
		return "", refuse(kbs.KindAttestation, "authentication request: %s", peerText(err))
	}
	if request.Version != kbs.Version {
		return "", refuse(kbs.KindAttestation, "protocol version is not %s", kbs.Version)
	}
	if err := request.TEE.Validate(); err != nil {
		return "", refuse(kbs.KindAttestation, "authentication request: %s", peerText(err))
	}
	if _, ok := b.verifiers.Verifier(request.TEE); ok {
		return request.TEE, nil
	}
	if request.TEE == kbs.TEESample {
		return request.TEE, refuse(kbs.KindAttestation, "tee sample proves nothing and is not allowed: the broker was not started with --allow-sample")
	}
	return request.TEE, refuse(kbs.KindAttestation, "this broker cannot verify evidence of tee %s", request.TEE)
}

// attest serves POST /attest: it has the evidence appraised and sends the token. A failed attempt ends the session.
func (b *Broker) attest(w http.ResponseWriter, r *http.Request) (retErr error) {
	rec := audit.Record{Event: audit.EventAttest}
	defer func() { b.Metrics.Attest(rec.TEE, retErr) }()
	cookie, err := r.Cookie(kbs.SessionCookie)
	if err != nil {
		return refuse(kbs.KindAttestation, "request carries no %s cookie: authenticate first", kbs.SessionCookie)
	}
	body, err := readBody(w, r, kbs.MaxAttestation)
	if err != nil {
		return err
	}
	rec.Session = audit.SessionID(cookie.Value)
	s, err := b.sessions.claim(cookie.Value)
	if err != nil {
		return b.record(r, rec, err)
	}
	rec.TEE = string(s.tee)
	token, err := b.appraise(r, s, body, &rec)
	if err == nil {
		err = b.sessions.finish(r.Context(), s, token)
	}
	if err = b.record(r, rec, err); err != nil {
		return err
	}
	setSession(w, cookie.Value)
	return sendJSON(w, kbs.TokenReply{Token: token})
}

// appraise checks everything that the guest sent and returns the token. It adds what it learns to rec.
func (b *Broker) appraise(r *http.Request, s session, body []byte, rec *audit.Record) (string, error) {
	var attestation kbs.Attestation
	if err := kbs.Decode(body, kbs.MaxAttestation, &attestation); err != nil {
		return "", refuse(kbs.KindAttestation, "attestation: %s", peerText(err))
	}
	runtime := attestation.RuntimeData
	if !sameNonce(runtime.Nonce, s.nonce) {
		return "", refuse(kbs.KindAttestation, "nonce is not the one of this session")
	}
	if _, err := parseTEEKey(runtime.TEEPublicKey); err != nil {
		return "", refuse(kbs.KindAttestation, "%s", peerText(err))
	}
	cpu, err := b.verifyCPU(r.Context(), s.tee, &attestation)
	if err != nil {
		return "", err
	}
	devices, err := b.verifyDevices(r.Context(), &attestation)
	if err != nil {
		return "", err
	}
	claims, err := buildClaims(append([]part{*cpu}, devices...), runtime)
	if err != nil {
		return "", broken("token could not be built", err)
	}
	if b.Appraisal != nil {
		for name, submod := range claims.Submods {
			if err := b.Appraisal.Appraise(r.Context(), strings.TrimRight(name, "0123456789"), &submod); err != nil {
				return "", broken("the attestation policy could not be evaluated", err)
			}
			claims.Submods[name] = submod
		}
	}
	return b.issue(claims, rec)
}

// verifyCPU has the primary evidence verified, bound to the session, to the guest's key, to its devices' evidence and to its initdata.
func (b *Broker) verifyCPU(ctx context.Context, tee kbs.TEE, attestation *kbs.Attestation) (*part, error) {
	runtime := attestation.RuntimeData
	reportData, err := kbs.ReportData(kbs.DefaultHash, runtime.Nonce, runtime.TEEPublicKey, attestation.Evidence.Additional)
	if err != nil {
		return nil, refuse(kbs.KindAttestation, "%s", peerText(err))
	}
	evidence := appraise.Evidence{Raw: attestation.Evidence.Primary, ReportData: reportData}
	p := &part{class: ear.ClassCPU, name: string(tee)}
	if attestation.InitData != nil {
		if p.measured, evidence.InitDataDigest, err = readInitData(attestation.InitData); err != nil {
			return nil, refuse(kbs.KindAttestation, "%s", peerText(err))
		}
	}
	verifier, ok := b.verifiers.Verifier(tee)
	if !ok {
		return nil, refuse(kbs.KindAttestation, "this broker cannot verify evidence of tee %s", tee)
	}
	if p.result, err = verifier.Verify(ctx, evidence); err != nil {
		return nil, refusedEvidence(err)
	}
	return p, nil
}

func (b *Broker) issue(claims ear.Claims, rec *audit.Record) (string, error) {
	token, issued, err := b.Tokens.Issue(claims, b.TokenLifetime)
	if err != nil {
		return "", broken("token could not be issued", err)
	}
	raw, err := issued.JSON()
	if err != nil {
		return "", broken("token could not be recorded", err)
	}
	rec.ClaimsDigest = audit.ClaimsDigest(raw)
	b.verified.keep(token, issued, rec.ClaimsDigest)
	if rec.Claims, err = recordedClaims(issued); err != nil {
		return "", broken("token could not be recorded", err)
	}
	return token, nil
}

func setSession(w http.ResponseWriter, cookie string) {
	http.SetCookie(w, &http.Cookie{Name: kbs.SessionCookie, Value: cookie, Path: "/", HttpOnly: true, SameSite: http.SameSiteStrictMode})
}

func sendJSON(w http.ResponseWriter, document any) error {
	raw, err := json.Marshal(document)
	if err != nil {
		return broken("answer could not be encoded", err)
	}
	w.Header().Set("Content-Type", "application/json")
	if _, err := w.Write(raw); err != nil {
		return nil // the peer has gone; there is nobody to tell
	}
	return nil
}
