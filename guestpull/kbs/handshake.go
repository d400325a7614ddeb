package kbs

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/containerd/errdefs"

	proto "github.com/coffer-project/coffer/proto/kbs"
)

// expiryMargin is how long before its end a token counts as old, so that it does not expire on the way.
const expiryMargin = 10 * time.Second

// session is one successful handshake: the broker knows cookie as a guest that holds key.
type session struct {
	cookie string
	key    *keyPair
	// token is the broker's word on the guest, for whoever trusts the broker.
	token string
	// until is on the guest's monotonic clock, computed from the token's lifetime: the guest's wall clock may be wrong.
	until time.Time
}

func (s *session) fresh() bool { return time.Now().Before(s.until) }

// attested returns the kept session unless it is old or equals spent, and otherwise makes a new one.
func (c *Client) attested(ctx context.Context, spent *session) (*session, error) {
	usable := func(s *session) bool { return s != spent && s.fresh() }
	return c.session.do(ctx, usable, func(ctx context.Context) (s *session, err error) {
		// A failed attempt begins again with a new challenge: the broker may have spent the old one without our seeing its answer.
		err = c.retry(ctx, func(ctx context.Context) error {
			s, err = c.handshake(ctx)
			return err
		})
		return s, err
	})
}

func (c *Client) handshake(ctx context.Context) (*session, error) {
	if c.refuse != nil {
		return nil, fmt.Errorf("attest to key broker %s: %w", c.name, c.refuse)
	}
	start := time.Now()
	key, err := newKeyPair()
	if err != nil {
		return nil, err
	}
	challenge, cookie, err := c.authenticate(ctx)
	if err != nil {
		return nil, err
	}
	attestation, err := c.attestation(ctx, challenge, key)
	if err != nil {
		return nil, err
	}
	s := &session{cookie: cookie, key: key}
	lifetime, err := c.attest(ctx, attestation, s)
	if err != nil {
		return nil, err
	}
	s.until = time.Now().Add(lifetime - expiryMargin)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.timings.Attest += time.Since(start)
	c.timings.Handshakes++
	return s, nil
}

// authenticate gets a challenge and the session's cookie.
func (c *Client) authenticate(ctx context.Context) (*proto.Challenge, string, error) {
	const step = "authentication"
	params, err := json.Marshal(proto.HashParams{Supported: []proto.Hash{proto.SHA256, proto.SHA384, proto.SHA512}})
	if err != nil {
		return nil, "", fmt.Errorf("encode authentication request: %w", err)
	}
	body, err := json.Marshal(proto.Request{Version: proto.Version, TEE: c.tee, ExtraParams: params})
	if err != nil {
		return nil, "", fmt.Errorf("encode authentication request: %w", err)
	}
	a, err := c.exchange(ctx, step, proto.MaxChallenge, func(ctx context.Context) (*http.Request, error) {
		return c.request(ctx, http.MethodPost, proto.PathAuth, "", body)
	})
	if err != nil {
		return nil, "", err
	}
	if err := c.accept(step, a); err != nil {
		return nil, "", err
	}
	var challenge proto.Challenge
	if err := proto.Decode(a.body, proto.MaxChallenge, &challenge); err != nil {
		return nil, "", c.garbage(step, err.Error())
	}
	switch {
	case challenge.Nonce == "" || len(challenge.Nonce) > proto.MaxNonce:
		return nil, "", c.garbage(step, "a challenge without a usable nonce")
	case !validCookie(a.cookie):
		return nil, "", c.garbage(step, "no usable "+proto.SessionCookie+" cookie")
	}
	return &challenge, a.cookie, nil
}

// attestation binds fresh evidence to the challenge and to key.
func (c *Client) attestation(ctx context.Context, challenge *proto.Challenge, key *keyPair) ([]byte, error) {
	hash, err := proto.SelectedHash(challenge.ExtraParams)
	if err != nil {
		return nil, c.garbage("authentication", err.Error())
	}
	additional, err := c.deviceEvidence(ctx, hash, challenge.Nonce, key)
	if err != nil {
		return nil, err
	}
	reportData, err := proto.ReportData(hash, challenge.Nonce, key.jwk, additional)
	if err != nil {
		return nil, fmt.Errorf("bind evidence to the session: %w", err)
	}
	evidence, err := c.attester.Evidence(ctx, reportData)
	if err != nil {
		return nil, fmt.Errorf("collect %s evidence: %w", c.tee, err)
	}
	document := proto.Attestation{
		RuntimeData: proto.RuntimeData{Nonce: challenge.Nonce, TEEPublicKey: key.jwk},
		Evidence:    proto.CompositeEvidence{Primary: evidence, Additional: additional},
	}
	if c.initData != "" {
		document.InitData = &proto.InitData{Format: proto.InitDataTOML, Body: c.initData}
	}
	body, err := json.Marshal(document)
	if err != nil {
		return nil, fmt.Errorf("encode %s evidence: %w", c.tee, err)
	}
	if len(body) > proto.MaxAttestation {
		return nil, fmt.Errorf("%s evidence, that of devices, and initdata have %d bytes, more than the %d that a key broker takes: %w", c.tee, len(body), proto.MaxAttestation, errdefs.ErrInvalidArgument)
	}
	return body, nil
}

// attest hands the evidence in, completes the session with the answer, and returns how long the broker trusts the evidence.
func (c *Client) attest(ctx context.Context, body []byte, s *session) (time.Duration, error) {
	const step = "attestation"
	a, err := c.exchange(ctx, step, proto.MaxTokenReply, func(ctx context.Context) (*http.Request, error) {
		return c.request(ctx, http.MethodPost, proto.PathAttest, s.cookie, body)
	})
	if err != nil {
		return 0, err
	}
	if err := c.accept(step, a); err != nil {
		return 0, err
	}
	var reply proto.TokenReply
	if err := proto.Decode(a.body, proto.MaxTokenReply, &reply); err != nil {
		return 0, c.garbage(step, err.Error())
	}
	lifetime, err := tokenLifetime(reply.Token)
	if err != nil {
		return 0, c.garbage(step, err.Error())
	}
	if validCookie(a.cookie) {
		s.cookie = a.cookie // a broker may move the session to a new name
	}
	s.token = reply.Token
	return lifetime, nil
}

// accept turns an answer that is not a success into an error.
func (c *Client) accept(step string, a *answer) error {
	switch a.status {
	case http.StatusOK:
		return nil
	case http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden:
		return c.refusedGuest(step, a)
	default:
		return c.garbage(step, a.reason())
	}
}

// validCookie accepts what can be sent back unchanged.
func validCookie(value string) bool {
	if value == "" || len(value) > 256 {
		return false
	}
	for _, r := range value {
		if r <= 0x20 || r >= 0x7f || r == ';' || r == ',' || r == '"' || r == '\\' {
			return false
		}
	}
	return true
}
