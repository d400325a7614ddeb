package broker

import (
	"encoding/json"
	"fmt"
	"runtime/debug"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/pelletier/go-toml/v2"

	"github.com/coffer-project/coffer/owner/appraise"
	"github.com/coffer-project/coffer/owner/broker/ear"
	"github.com/coffer-project/coffer/proto/initdata"
	"github.com/coffer-project/coffer/proto/kbs"
)

// verifierID names this broker in tokens.
var verifierID = sync.OnceValue(func() ear.VerifierID {
	build := "coffer-kbs"
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		build += " " + info.Main.Version
	}
	return ear.VerifierID{Developer: "https://github.com/coffer-project/coffer", Build: build}
})

// readInitData parses the measured document that a guest sent and returns it with its digest.
func readInitData(sent *kbs.InitData) (*initdata.Document, []byte, error) {
	if sent.Format != kbs.InitDataTOML {
		return nil, nil, fmt.Errorf("init-data has another format than %s: %w", kbs.InitDataTOML, errdefs.ErrNotImplemented)
	}
	document, err := initdata.Parse([]byte(sent.Body))
	if err != nil {
		return nil, nil, err
	}
	_, digest, err := initdata.Digest([]byte(sent.Body))
	if err != nil {
		return nil, nil, err
	}
	return document, digest, nil
}

// buildClaims writes an appraisal down in the layout of the token. measured may be nil.
func buildClaims(tee kbs.TEE, result *appraise.Result, measured *initdata.Document, runtime kbs.RuntimeData) (ear.Claims, error) {
	entries := map[string]any{
		string(tee):       result.Claims,
		ear.ReportData:    result.ReportData,
		ear.RuntimeClaims: runtime,
	}
	if result.InitData != "" {
		entries[ear.InitData] = result.InitData
		entries[ear.InitDataClaims] = initDataClaims(measured)
	}
	evidence := map[string]json.RawMessage{}
	for name, entry := range entries {
		raw, err := json.Marshal(entry)
		if err != nil {
			return ear.Claims{}, fmt.Errorf("encode claim %s: %w", name, err)
		}
		evidence[name] = raw
	}
	return ear.Claims{
		VerifierID: verifierID(),
		Submods: map[string]ear.Submod{
			ear.CPU: {Status: result.Status, Vector: result.Vector, PolicyID: result.PolicyID, Evidence: evidence},
		},
	}, nil
}

// initDataClaims shows the measured document to policies: the configurations as JSON, other entries as text. The agent's policy is left
// out, it would make tokens larger than HTTP headers may be.
func initDataClaims(measured *initdata.Document) map[string]any {
	if measured == nil {
		return nil
	}
	claims := map[string]any{}
	for name, text := range measured.Data {
		switch name {
		case initdata.KeyPolicy:
		case initdata.KeyAA, initdata.KeyCDH:
			var table map[string]any
			if err := toml.Unmarshal([]byte(text), &table); err == nil {
				claims[name] = table
			}
		default:
			claims[name] = text
		}
	}
	return claims
}
