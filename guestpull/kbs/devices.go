package kbs

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	proto "github.com/coffer-project/coffer/proto/kbs"
)

// deviceEvidence collects the evidence of all devices, bound to the session and to key: the additional evidence of the protocol, which the
// primary evidence is bound to in turn. It is empty for a guest without devices.
func (c *Client) deviceEvidence(ctx context.Context, hash proto.Hash, nonce string, key *keyPair) (string, error) {
	if len(c.devices) == 0 {
		return "", nil
	}
	reportData, err := proto.DeviceReportData(hash, nonce, key.jwk)
	if err != nil {
		return "", fmt.Errorf("bind evidence of devices to the session: %w", err)
	}
	byKind := map[string]json.RawMessage{}
	for _, d := range c.devices {
		evidence, err := d.Evidence(ctx, reportData)
		if err != nil {
			return "", fmt.Errorf("collect evidence of devices %s: %w", d.Device(), err)
		}
		if evidence != nil {
			byKind[d.Device()] = evidence
		}
	}
	if len(byKind) == 0 {
		return "", nil
	}
	raw, err := json.Marshal(byKind)
	if err != nil {
		return "", fmt.Errorf("encode evidence of devices: %w", err)
	}
	return string(raw), nil
}

// Attest proves to the broker what this guest is, all its devices included, unless it did already. It succeeds only if the broker found
// every part of the guest affirming; PermissionDenied names those that it did not. Other errors are those of Resource.
//
// A broker gives a token to any guest that is genuine, and decides on trust when it is asked for a key. So this is for what a guest decides
// by itself: whether its devices may be used.
func (c *Client) Attest(ctx context.Context) error {
	s, err := c.attested(ctx, nil)
	if err != nil {
		return err
	}
	if c.affirmed(s.token) == nil {
		return nil
	}
	// The broker's owner may have learned more since.
	if s, err = c.attested(ctx, s); err != nil {
		return err
	}
	return c.affirmed(s.token)
}

// affirmed reads the broker's verdicts in a token. That it is the broker's, the connection has shown.
func (c *Client) affirmed(token string) error {
	bad := func(reason string) error {
		return fmt.Errorf("key broker %s %s: %w", c.name, reason, errdefs.ErrPermissionDenied)
	}
	var claims struct {
		Parts map[string]struct {
			Status   string                     `json:"ear.status"`
			Evidence map[string]json.RawMessage `json:"ear.veraison.annotated-evidence"`
		} `json:"submods"`
	}
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return bad("gave a token that is no JWT")
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil || proto.Decode(payload, proto.MaxTokenReply, &claims) != nil {
		return bad("gave a token whose claims cannot be read")
	}
	appraised, doubts := map[string]bool{}, []string{}
	for name, part := range claims.Parts {
		for kind := range part.Evidence {
			appraised[kind] = true
		}
		if part.Status != "affirming" {
			doubts = append(doubts, plainText(fmt.Sprintf("%.16s as %.16s", name, part.Status)))
		}
	}
	if slices.Sort(doubts); len(doubts) > 0 {
		return bad("appraised " + strings.Join(doubts[:min(len(doubts), 16)], ", ") + ", not as affirming")
	}
	for _, kind := range append(c.kinds(), string(c.tee)) {
		if !appraised[kind] {
			return bad("did not appraise " + kind)
		}
	}
	return nil
}

func (c *Client) kinds() []string {
	var kinds []string
	for _, d := range c.devices {
		kinds = append(kinds, d.Device())
	}
	return kinds
}

// plainText keeps what a broker wrote out of logs unless it is printable ASCII.
func plainText(text string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r > 0x7e {
			return '?'
		}
		return r
	}, text)
}
