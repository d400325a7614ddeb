package broker

import (
	"encoding/json"
	"fmt"
	"maps"
	"runtime/debug"
	"strconv"
	"strings"
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

// part is one appraised part of a guest: its CPU or one of its devices.
type part struct {
	class  string // cpu, gpu ...
	name   string // of the TEE or kind of device
	result *appraise.Result
	// measured is the initdata that the guest sent with this part's evidence; may be nil.
	measured *initdata.Document
}

// buildClaims writes an appraisal down in the layout of the token: one submodule for each part, counted within its class.
func buildClaims(parts []part, runtime kbs.RuntimeData) (ear.Claims, error) {
	claims := ear.Claims{VerifierID: verifierID(), Submods: map[string]ear.Submod{}}
	count := map[string]int{}
	for _, p := range parts {
		evidence, err := annotate(p, runtime)
		if err != nil {
			return ear.Claims{}, err
		}
		name := p.class + strconv.Itoa(count[p.class])
		count[p.class]++
		claims.Submods[name] = ear.Submod{Status: p.result.Status, Vector: p.result.Vector, PolicyID: p.result.PolicyID, Evidence: evidence}
	}
	return claims, nil
}

func annotate(p part, runtime kbs.RuntimeData) (map[string]json.RawMessage, error) {
	entries := map[string]any{
		p.name:            p.result.Claims,
		ear.ReportData:    p.result.ReportData,
		ear.RuntimeClaims: runtime,
	}
	if p.result.InitData != "" {
		entries[ear.InitData] = p.result.InitData
		entries[ear.InitDataClaims] = initDataClaims(p.measured)
	}
	evidence := map[string]json.RawMessage{}
	for name, entry := range entries {
		raw, err := json.Marshal(entry)
		if err != nil {
			return nil, fmt.Errorf("encode claim %s: %w", name, err)
		}
		evidence[name] = raw
	}
	return evidence, nil
}

// recordedClaims is what of a token's claims goes to the audit log: all but the agent policy's data, which is long and may quote a pod's
// environment. The claims' digest covers it.
func recordedClaims(claims *ear.Claims) (json.RawMessage, error) {
	recorded := *claims
	recorded.Submods = maps.Clone(claims.Submods)
	cut := false
	for name, submod := range recorded.Submods {
		var measured map[string]json.RawMessage
		if err := json.Unmarshal(submod.Evidence[ear.InitDataClaims], &measured); err != nil || measured[ear.AgentPolicyClaims] == nil {
			continue
		}
		delete(measured, ear.AgentPolicyClaims)
		raw, err := json.Marshal(measured)
		if err != nil {
			return nil, err
		}
		submod.Evidence = maps.Clone(submod.Evidence)
		submod.Evidence[ear.InitDataClaims] = raw
		recorded.Submods[name], cut = submod, true
	}
	if !cut {
		return claims.JSON()
	}
	return json.Marshal(recorded)
}

// maxPolicyData bounds the agent policy's data in tokens, in bytes: tokens travel in HTTP headers.
const maxPolicyData = 64 << 10

// initDataClaims shows the measured document to policies: the configurations as JSON, other entries as text, and of the agent's policy
// only its data, as Trustee does: with them a resource policy can ask for the containers that the guest may run.
func initDataClaims(measured *initdata.Document) map[string]any {
	if measured == nil {
		return nil
	}
	claims := map[string]any{}
	for name, text := range measured.Data {
		switch name {
		case initdata.KeyPolicy:
			if data := policyData(text); data != nil {
				claims[ear.AgentPolicyClaims] = data
			}
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

// policyData returns the JSON object that an agent policy assigns to policy_data, as genpolicy writes it: at the beginning of a line. nil
// where there is none, or one that is too long.
func policyData(policy string) json.RawMessage {
	const assignment = "\npolicy_data := "
	at := strings.LastIndex(policy, assignment)
	if at < 0 {
		return nil
	}
	var data json.RawMessage
	if err := json.NewDecoder(strings.NewReader(policy[at+len(assignment):])).Decode(&data); err != nil || len(data) > maxPolicyData || data[0] != '{' {
		return nil
	}
	return data
}
