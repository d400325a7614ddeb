package policy

import (
	"context"
	"encoding/json"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/owner/appraise"
	"github.com/coffer-project/coffer/owner/broker/ear"
	"github.com/coffer-project/coffer/owner/broker/reference"
	"github.com/coffer-project/coffer/owner/broker/store"
	"github.com/coffer-project/coffer/owner/broker/store/files"
	"github.com/coffer-project/coffer/proto/kbs"
)

var key = kbs.ResourceURI{Repository: "default", Type: "key", Tag: "1"}

func open(t *testing.T, allowSample bool) (*Policies, *reference.Values) {
	t.Helper()
	s, err := files.Open(filepath.Join(t.TempDir(), "store"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	references := reference.New(s, time.Now)
	return New(s, references, allowSample), references
}

func submod(tee string, status appraise.Status) ear.Submod {
	return ear.Submod{Status: status, Evidence: map[string]json.RawMessage{tee: json.RawMessage(`{}`)}}
}

// A guest that was not affirmed hears which entry of the vector is the cause.
func TestReasonNamesDoubts(t *testing.T) {
	part := submod("snp", appraise.Warning)
	part.Vector = appraise.TrustVector{Executables: appraise.ExecutablesUnknown, Hardware: appraise.HardwareGenuine, Configuration: appraise.ConfigurationSafe}
	p, _ := open(t, false)
	allowed, reason, err := p.Allow(t.Context(), &ear.Claims{Submods: map[string]ear.Submod{"cpu0": part}}, key)
	if allowed || err != nil || !strings.Contains(reason, "executables of cpu0 is 33") || strings.Contains(reason, "hardware") {
		t.Errorf("got %t, %q, %v", allowed, reason, err)
	}
}

func TestBuiltInResourcePolicies(t *testing.T) {
	for name, tc := range map[string]struct {
		submods map[string]ear.Submod
		sample  bool
		want    bool
	}{
		"nothing":              {nil, true, false},
		"nothing, strict":      {nil, false, false},
		"affirming":            {map[string]ear.Submod{"cpu0": submod("snp", appraise.Affirming)}, false, true},
		"affirming, sample ok": {map[string]ear.Submod{"cpu0": submod("snp", appraise.Affirming), "gpu0": submod("nvidia", appraise.Affirming)}, true, true},
		"warning":              {map[string]ear.Submod{"cpu0": submod("snp", appraise.Warning)}, true, false},
		"warning, strict":      {map[string]ear.Submod{"cpu0": submod("snp", appraise.Warning)}, false, false},
		"none":                 {map[string]ear.Submod{"cpu0": submod("snp", appraise.None)}, false, false},
		"no status":            {map[string]ear.Submod{"cpu0": submod("snp", "")}, false, false},
		"one part bad":         {map[string]ear.Submod{"cpu0": submod("snp", appraise.Affirming), "gpu0": submod("nvidia", appraise.Contraindicated)}, false, false},
		"one part bad, sample": {map[string]ear.Submod{"cpu0": submod("snp", appraise.Affirming), "gpu0": submod("nvidia", appraise.None)}, true, false},
		"sample":               {map[string]ear.Submod{"cpu0": submod("sample", appraise.None)}, false, false},
		"sample allowed":       {map[string]ear.Submod{"cpu0": submod("sample", appraise.None)}, true, true},
		"sample and a device":  {map[string]ear.Submod{"cpu0": submod("sample", appraise.None), "gpu0": submod("nvidia", appraise.Affirming)}, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			p, _ := open(t, tc.sample)
			allowed, reason, err := p.Allow(t.Context(), &ear.Claims{Submods: tc.submods}, key)
			if allowed != tc.want || !strings.Contains(reason, "resource-policy (built-in)") || err != nil {
				t.Errorf("got %t, %q, %v", allowed, reason, err)
			}
			if strings.Contains(name, "bad") && !tc.sample && !strings.Contains(reason, "gpu0") {
				t.Errorf("reason does not name the part: %q", reason)
			}
		})
	}
}

// Resource policies of users of Trustee hold here too.
func TestResourcePolicy(t *testing.T) {
	claims := &ear.Claims{Submods: map[string]ear.Submod{"cpu0": {Status: appraise.Warning, Evidence: map[string]json.RawMessage{
		"snp": json.RawMessage(`{"measurement":"aa"}`), ear.InitDataClaims: json.RawMessage(`{"agent_policy_claims":{"containers":[{"name":"web"}]}}`),
	}}}}
	for name, tc := range map[string]struct {
		policy string
		want   bool
		reason string
		err    error
	}{
		"all":            {"package policy\ndefault allow = false\nplugin = data.plugin\nallow if { plugin == \"resource\" }", true, "allows it", nil},
		"none":           {"package policy\ndefault allow = false", false, "does not allow it", nil},
		"by path":        {"package policy\nimport rego.v1\nallow if data[\"resource-path\"] == [\"default\", \"key\", \"1\"]", true, "", nil},
		"by other path":  {"package policy\nimport rego.v1\nallow if data[\"resource-path\"][0] == \"other\"", false, "", nil},
		"by measurement": {"package policy\nimport rego.v1\nallow if input.submods.cpu0[\"ear.veraison.annotated-evidence\"].snp.measurement == \"aa\"", true, "", nil},
		"by container": {"package policy\nimport rego.v1\nallow if input[\"submods\"][\"cpu0\"][\"ear.veraison.annotated-evidence\"][\"init_data_claims\"][\"agent_policy_claims\"][\"containers\"][0][\"name\"] == \"web\"",
			true, "", nil},
		"by reference": {"package policy\nimport rego.v1\nallow if \"aa\" in query_reference_value(\"snp_launch_measurement\")", true, "", nil},
		"own reason":   {"package policy\nimport rego.v1\ndefault allow := false\nreason := \"not today\"", false, "not today", nil},
		"odd value":    {"package policy\nimport rego.v1\nallow := \"true\"", false, "", nil},
		"runs away": {"package policy\nimport rego.v1\nallow if { some i in numbers.range(1, 100000); some j in numbers.range(1, 100000); i * j == -1 }",
			false, "", context.DeadlineExceeded},
	} {
		t.Run(name, func(t *testing.T) {
			p, references := open(t, true)
			if _, err := references.Register(t.Context(), []byte(`{"snp_launch_measurement":["aa"]}`)); err != nil {
				t.Fatal(err)
			}
			if err := p.SetResource(t.Context(), tc.policy); err != nil {
				t.Fatal(err)
			}
			allowed, reason, err := p.Allow(t.Context(), claims, key)
			if allowed != tc.want || !errors.Is(err, tc.err) || err == nil && !strings.Contains(reason, tc.reason) {
				t.Errorf("got %t, %q, %v", allowed, reason, err)
			}
		})
	}
}

func TestAppraise(t *testing.T) {
	const byReference = `package policy
import rego.v1
default executables := 33
executables := 3 if input.snp.measurement in query_reference_value("snp_launch_measurement")
trust_claims := {"executables": executables, "hardware": 2, "configuration": 0}
extensions := [{"name": "ear.trustee.identifiers", "key": -1, "value": {"validated": [input.snp.measurement]}}]`
	verifier := appraise.TrustVector{Hardware: appraise.HardwareGenuine}
	for name, tc := range map[string]struct {
		class, policy string
		measurement   string
		status        appraise.Status
		vector        appraise.TrustVector
		id            string
		err           error
	}{
		"built-in":       {"cpu", "", "aa", appraise.Warning, verifier, "of verifier", nil},
		"other class":    {"gpu", byReference, "aa", appraise.Warning, verifier, "of verifier", nil},
		"trusted":        {"cpu", byReference, "aa", appraise.Affirming, appraise.TrustVector{Executables: 3, Hardware: 2}, "default", nil},
		"not trusted":    {"cpu", byReference, "ab", appraise.Warning, appraise.TrustVector{Executables: 33, Hardware: 2}, "default", nil},
		"passes on":      {"cpu", "package policy\ntrust_claims := input[\"ear.trustworthiness-vector\"]", "aa", appraise.Affirming, verifier, "default", nil},
		"undefined":      {"cpu", "package policy\nimport rego.v1\ntrust_claims := {\"hardware\": 2} if input.tdx", "aa", appraise.None, appraise.TrustVector{}, "default", nil},
		"out of range":   {"cpu", "package policy\ntrust_claims := {\"hardware\": 200}", "aa", "", appraise.TrustVector{}, "", errdefs.ErrInternal},
		"unknown claim":  {"cpu", "package policy\ntrust_claims := {\"firmware\": 2}", "aa", "", appraise.TrustVector{}, "", errdefs.ErrInternal},
		"no number":      {"cpu", "package policy\ntrust_claims := {\"hardware\": \"good\"}", "aa", "", appraise.TrustVector{}, "", errdefs.ErrInternal},
		"reserved name":  {"cpu", "package policy\ntrust_claims := {\"hardware\": 2}\nextensions := [{\"name\": \"EAR.status\", \"key\": 1, \"value\": \"affirming\"}]", "aa", "", appraise.TrustVector{}, "", errdefs.ErrInternal},
		"odd extensions": {"cpu", "package policy\ntrust_claims := {\"hardware\": 2}\nextensions := 1", "aa", "", appraise.TrustVector{}, "", errdefs.ErrInternal},
	} {
		t.Run(name, func(t *testing.T) {
			p, references := open(t, false)
			if _, err := references.Register(t.Context(), []byte(`{"snp_launch_measurement":["aa"]}`)); err != nil {
				t.Fatal(err)
			}
			if tc.policy != "" {
				if err := p.SetAttestation(t.Context(), "default_cpu", tc.policy); err != nil {
					t.Fatal(err)
				}
			}
			s := ear.Submod{Status: appraise.Warning, Vector: verifier, PolicyID: "of verifier", Evidence: map[string]json.RawMessage{
				"snp": json.RawMessage(`{"measurement":"` + tc.measurement + `"}`),
			}}
			err := p.Appraise(t.Context(), tc.class, &s)
			if !errors.Is(err, tc.err) {
				t.Fatalf("got %v", err)
			}
			if err != nil {
				return
			}
			if s.Status != tc.status || s.Vector != tc.vector || s.PolicyID != tc.id {
				t.Errorf("got %+v", s)
			}
			if tc.policy == byReference && tc.id == "default" {
				raw, err := json.Marshal(s)
				if err != nil || !strings.Contains(string(raw), `"ear.trustee.identifiers":{"validated":["`+tc.measurement+`"]}`) {
					t.Errorf("token part %s, %v", raw, err)
				}
				var again ear.Submod
				if err := json.Unmarshal(raw, &again); err != nil || again.Status != s.Status || len(again.Extensions) != 1 {
					t.Errorf("read back %+v, %v", again, err)
				}
			}
		})
	}
}

// The built-in attestation policy is shown to admins; it must do what its absence does.
func TestBuiltInAttestationPolicy(t *testing.T) {
	p, _ := open(t, false)
	text, shown, err := p.Attestation(t.Context(), "default_cpu")
	if err != nil || shown != "default_cpu"+BuiltIn {
		t.Fatalf("%q, %v", shown, err)
	}
	if err := p.SetAttestation(t.Context(), "default_cpu", text); err != nil {
		t.Fatal(err)
	}
	want := appraise.TrustVector{InstanceIdentity: 1, Configuration: 2, Executables: 3, FileSystem: 4, Hardware: 5, RuntimeOpaque: 6, StorageOpaque: 7, SourcedData: -8}
	s := ear.Submod{Vector: want}
	if err := p.Appraise(t.Context(), "cpu", &s); err != nil || s.Vector != want || s.Status != want.Status() {
		t.Errorf("%+v, %v", s, err)
	}
}

func TestManage(t *testing.T) {
	p, _ := open(t, false)
	ctx := t.Context()
	for what, err := range map[string]error{
		"resource policy":    p.SetResource(ctx, "package policy\nallow := nothing()"),
		"without allow":      p.SetResource(ctx, "package policy\npermit := true"),
		"attestation policy": p.SetAttestation(ctx, "default_cpu", "package policy\nallow := true"),
		"id":                 p.SetAttestation(ctx, "../default", "package policy\ntrust_claims := {}"),
	} {
		if !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := p.ResetResource(ctx); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("reset of nothing: %v", err)
	}
	if err := p.SetResource(ctx, "package policy\nallow := true"); err != nil {
		t.Fatal(err)
	}
	if _, id, err := p.Resource(ctx); id != ResourceID || err != nil {
		t.Errorf("%q, %v", id, err)
	}
	if err := p.ResetResource(ctx); err != nil {
		t.Error(err)
	}
	if _, id, err := p.Resource(ctx); id != ResourceID+BuiltIn || err != nil {
		t.Errorf("%q, %v", id, err)
	}
	if err := p.SetAttestation(ctx, "default_gpu", "package policy\ntrust_claims := {\"hardware\": 2}"); err != nil {
		t.Fatal(err)
	}
	if ids, err := p.Attestations(ctx); err != nil || len(ids) != 1 || ids[0] != "default_gpu" {
		t.Errorf("%v, %v", ids, err)
	}
	if err := p.DeleteAttestation(ctx, "default_gpu"); err != nil {
		t.Error(err)
	}
	if _, _, err := p.Attestation(ctx, "mine"); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("unknown policy: %v", err)
	}
}

type down struct{ store.Store }

func (down) Get(context.Context, string) ([]byte, error) { return nil, errdefs.ErrUnavailable }

// With a store that does not answer nobody is trusted by a built-in policy instead.
func TestStoreDown(t *testing.T) {
	p := New(down{}, reference.New(down{}, time.Now), true)
	if allowed, _, err := p.Allow(t.Context(), &ear.Claims{Submods: map[string]ear.Submod{"cpu0": submod("snp", appraise.Affirming)}}, key); allowed || !errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("%t, %v", allowed, err)
	}
	if err := p.Appraise(t.Context(), "cpu", &ear.Submod{}); !errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("%v", err)
	}
}
