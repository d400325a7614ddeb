package broker_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/owner/appraise"
	"github.com/coffer-project/coffer/owner/broker"
	"github.com/coffer-project/coffer/owner/broker/audit"
	"github.com/coffer-project/coffer/owner/broker/brokertest"
	"github.com/coffer-project/coffer/proto/kbs"
)

// fakeGPUs verifies evidence that lists a report data and a hardware code for each device.
type fakeGPUs struct{}

func (fakeGPUs) Device() string { return "nvidia" }

func (fakeGPUs) VerifyDevices(_ context.Context, e appraise.Evidence) ([]broker.DeviceResult, error) {
	var list []struct {
		Bound    []byte `json:"bound"`
		Hardware int8   `json:"hardware"`
	}
	if err := kbs.DecodeStrict(e.Raw, 1<<16, &list); err != nil {
		return nil, err
	}
	var results []broker.DeviceResult
	for _, device := range list {
		if !bytes.Equal(device.Bound, e.ReportData) {
			return nil, fmt.Errorf("device is bound to another session: %w", errdefs.ErrPermissionDenied)
		}
		vector := appraise.TrustVector{Hardware: device.Hardware}
		results = append(results, broker.DeviceResult{Class: "gpu", Result: appraise.Result{Vector: vector, Status: vector.Status(), Claims: map[string]any{"arch": "HOPPER"}}})
	}
	return results, nil
}

// withDevices binds evidence of devices with these hardware codes to the guest's session, and the whole to its CPU evidence.
func (g *guest) withDevices(a *kbs.Attestation, codes ...int8) {
	g.t.Helper()
	bound, err := kbs.DeviceReportData(kbs.DefaultHash, a.RuntimeData.Nonce, a.RuntimeData.TEEPublicKey)
	if err != nil {
		g.t.Fatal(err)
	}
	devices := []map[string]any{}
	for _, code := range codes {
		devices = append(devices, map[string]any{"bound": bound, "hardware": code})
	}
	raw, err := json.Marshal(map[string]any{"nvidia": devices})
	if err != nil {
		g.t.Fatal(err)
	}
	a.Evidence.Additional = string(raw)
	g.bind(a)
}

// A guest's devices are parts of it: the token shows each, policies judge each, and one bad one costs the key.
func TestDevices(t *testing.T) {
	b := start(t, brokertest.Options{Devices: []broker.DeviceVerifier{fakeGPUs{}}})
	if err := b.Policies.SetAttestation(t.Context(), "default_cpu", "package policy\ntrust_claims := {\"hardware\": 2}"); err != nil {
		t.Fatal(err)
	}
	if err := b.Policies.SetResource(t.Context(), "package policy\nimport rego.v1\ndefault allow := false\nallow if { count(input.submods) > 1; every s in input.submods { s[\"ear.status\"] == \"affirming\" } }"); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		codes    []int8
		released bool
	}{
		"two good": {[]int8{2, 2}, true},
		"one bad":  {[]int8{2, 97}, false},
		"none":     {nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGuest(t, b)
			g.auth()
			if w := g.attest(func(a *kbs.Attestation) { g.withDevices(a, tc.codes...) }); w.Code != http.StatusOK {
				t.Fatalf("attest: status %d %s", w.Code, w.Body)
			}
			if w := g.get(nil); tc.released {
				g.open(w)
			} else {
				refused(t, w, 401, kbs.KindPolicyDeny)
			}
			var claims string
			for _, r := range b.Audit() {
				if r.Event == audit.EventAttest {
					claims = string(r.Claims)
				}
			}
			for i := range tc.codes {
				if !strings.Contains(claims, fmt.Sprintf(`"gpu%d"`, i)) {
					t.Errorf("gpu%d is not in %s", i, claims)
				}
			}
		})
	}
	for name, spoil := range map[string]func(*guest, *kbs.Attestation){
		"other session": func(g *guest, a *kbs.Attestation) {
			a.RuntimeData.Nonce = "x"
			g.withDevices(a, 2)
			a.RuntimeData.Nonce = g.nonce
			g.bind(a)
		},
		"added later":  func(g *guest, a *kbs.Attestation) { g.withDevices(a, 2); g.bindAs(a, "") },
		"unknown kind": func(g *guest, a *kbs.Attestation) { a.Evidence.Additional = `{"abacus":{}}`; g.bind(a) },
		"not JSON":     func(g *guest, a *kbs.Attestation) { a.Evidence.Additional = `{`; g.bind(a) },
		"malformed":    func(g *guest, a *kbs.Attestation) { a.Evidence.Additional = `{"nvidia":[1]}`; g.bind(a) },
	} {
		t.Run(name, func(t *testing.T) {
			g := newGuest(t, b)
			g.auth()
			refused(t, g.attest(func(a *kbs.Attestation) { spoil(g, a) }), 401, kbs.KindAttestation)
		})
	}
}

// bindAs binds the CPU evidence to other device evidence than is sent.
func (g *guest) bindAs(a *kbs.Attestation, additional string) {
	g.t.Helper()
	sent := a.Evidence.Additional
	a.Evidence.Additional = additional
	g.bind(a)
	a.Evidence.Additional = sent
}
