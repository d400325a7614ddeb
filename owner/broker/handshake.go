package broker

import (
	"encoding/json"
	"net/http"

	"github.com/coffer-project/coffer/owner/appraise"
	"github.com/coffer-project/coffer/owner/broker/audit"
	"github.com/coffer-project/coffer/owner/broker/ear"
	"github.com/coffer-project/coffer/proto/initdata"
	"github.com/coffer-project/coffer/proto/kbs"
)

// auth serves POST /auth: it opens a session and sends the challenge.
func (b *Broker) auth(w http.ResponseWriter, r *http.Request) error {
	body, err := readBody(w, r, kbs.MaxRequest)
	if err != nil {
		return err
	}
	tee, err := b.checkRequest(body)
	if err != nil {
		return b.record(r, audit.Record{Event: audit.EventAuth, TEE: string(tee)}, err)
	}
	s, ok := b.sessions.begin(tee)
	if !ok {
		return busy(http.StatusServiceUnavailable, "too many sessions")
	}
	setSession(w, s.id)
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
func (b *Broker) attest(w http.ResponseWriter, r *http.Request) error {
	cookie, err := r.Cookie(kbs.SessionCookie)
	if err != nil {
		return refuse(kbs.KindAttestation, "request carries no %s cookie: authenticate first", kbs.SessionCookie)
	}
	body, err := readBody(w, r, kbs.MaxAttestation)
	if err != nil {
		return err
	}
	rec := audit.Record{Event: audit.EventAttest, Session: audit.SessionID(cookie.Value)}
	s, err := b.sessions.claim(cookie.Value)
	if err != nil {
		return b.record(r, rec, err)
	}
	rec.TEE = string(s.tee)
	token, err := b.appraise(r, s, body, &rec)
	if err == nil {
		err = b.sessions.finish(s.id, token)
	}
	if err = b.record(r, rec, err); err != nil {
		b.sessions.drop(s.id)
		return err
	}
	setSession(w, s.id)
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
	if extra := attestation.Evidence.Additional; extra != "" && extra != "{}" {
		return "", refuse(kbs.KindAttestation, "this broker cannot verify evidence of devices")
	}
	reportData, err := kbs.ReportData(kbs.DefaultHash, runtime.Nonce, runtime.TEEPublicKey, attestation.Evidence.Additional)
	if err != nil {
		return "", refuse(kbs.KindAttestation, "%s", peerText(err))
	}
	evidence := appraise.Evidence{Raw: attestation.Evidence.Primary, ReportData: reportData}
	var measured *initdata.Document
	if attestation.InitData != nil {
		if measured, evidence.InitDataDigest, err = readInitData(attestation.InitData); err != nil {
			return "", refuse(kbs.KindAttestation, "%s", peerText(err))
		}
	}
	verifier, ok := b.verifiers.Verifier(s.tee)
	if !ok {
		return "", refuse(kbs.KindAttestation, "this broker cannot verify evidence of tee %s", s.tee)
	}
	result, err := verifier.Verify(r.Context(), evidence)
	if err != nil {
		return "", refuse(kbs.KindAttestation, "%s", peerText(err))
	}
	claims, err := buildClaims(s.tee, result, measured, runtime)
	if err != nil {
		return "", broken("token could not be built", err)
	}
	return b.issue(claims, rec)
}

func (b *Broker) issue(claims ear.Claims, rec *audit.Record) (string, error) {
	token, err := b.Tokens.Issue(claims, b.TokenLifetime)
	if err != nil {
		return "", broken("token could not be issued", err)
	}
	issued, err := b.Tokens.Verify(token)
	if err != nil {
		return "", broken("own token does not verify", err)
	}
	raw, err := json.Marshal(issued)
	if err != nil {
		return "", broken("token could not be recorded", err)
	}
	rec.Claims, rec.ClaimsDigest = raw, audit.ClaimsDigest(raw)
	return token, nil
}

func setSession(w http.ResponseWriter, id string) {
	http.SetCookie(w, &http.Cookie{Name: kbs.SessionCookie, Value: id, Path: "/", HttpOnly: true, SameSite: http.SameSiteStrictMode})
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
