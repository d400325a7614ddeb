package broker_test

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coffer-project/coffer/owner/broker/admin"
	"github.com/coffer-project/coffer/owner/broker/audit"
	"github.com/coffer-project/coffer/owner/broker/brokertest"
	"github.com/coffer-project/coffer/proto/kbs"
)

// The admin API answers as Trustee's clients expect, and by roles.
func TestAdminEndpoints(t *testing.T) {
	b := start(t, brokertest.Options{})
	g := newGuest(t, b)
	g.handshake()
	token := func(roles ...admin.Role) func(*http.Request) {
		signed, err := admin.Sign(b.AdminKeyOf(t, roles...), time.Now(), time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		return func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+signed) }
	}
	all, auditor := token(admin.RoleAdmin), token(admin.RoleAuditor)
	encode := func(policy string) string { return base64.RawURLEncoding.EncodeToString([]byte(policy)) }
	deny := `{"policy":"` + encode("package policy\nallow := false\nreason := \"closed\"") + `"}`
	vector := `{"type":"rego","policy_id":"default_cpu","policy":"` + encode("package policy\ntrust_claims := {\"hardware\": 2}") + `"}`
	values := `{"version":"0.1.0","type":"sample","payload":"` + base64.StdEncoding.EncodeToString([]byte(`{"snp_launch_measurement":["aa"]}`)) + `"}`
	for i, tc := range []struct {
		method, path, body string
		edit               func(*http.Request)
		status             int
		kind, want         string
	}{
		{"POST", kbs.PathResourcePolicy, deny, auditor, 401, kbs.KindAdminAuth, "may not change policies"},
		{"POST", kbs.PathResourcePolicy, deny, token(admin.RoleResources), 401, kbs.KindAdminAuth, "resources"},
		{"GET", kbs.PathResourcePolicy, "", auditor, 200, "", `["resource-policy"]`},
		{"GET", kbs.PathResourcePolicy + "/resource-policy", "", auditor, 200, "", `"built_in":true`},
		{"POST", kbs.PathResourcePolicy, `{"policy":"` + encode("package policy\nallow {") + `"}`, all, 400, kbs.KindParsePolicy, "policy resource-policy"},
		{"POST", kbs.PathResourcePolicy, `{"policy":"%"}`, all, 400, kbs.KindParsePolicy, "base64url"},
		{"POST", kbs.PathResourcePolicy, `{`, all, 400, kbs.KindParsePolicy, "JSON"},
		{"POST", kbs.PathResourcePolicy, strings.Repeat(" ", kbs.MaxPolicyRequest+1), all, 413, kbs.KindPluginInternal, "larger"},
		{"POST", kbs.PathResourcePolicy, deny, token(admin.RolePolicies), 200, "", ""},
		{"GET", kbs.PathResource + "/default/key/1", "", nil, 401, kbs.KindPolicyDeny, "closed"},
		{"GET", kbs.PathResourcePolicy + "/resource-policy", "", all, 200, "", `"built_in":false`},
		{"DELETE", kbs.PathResourcePolicy, "", auditor, 401, kbs.KindAdminAuth, ""},
		{"DELETE", kbs.PathResourcePolicy, "", all, 200, "", ""},
		{"DELETE", kbs.PathResourcePolicy, "", all, 404, kbs.KindNotFound, ""},
		{"GET", kbs.PathResource + "/default/key/1", "", nil, 200, "", "ciphertext"},
		{"POST", kbs.PathAttestationPolicy, vector, all, 200, "", ""},
		{"POST", kbs.PathAttestationPolicy, `{"type":"opa","policy_id":"x","policy":""}`, all, 400, kbs.KindParsePolicy, ""},
		{"POST", kbs.PathAttestationPolicy, `{"policy_id":"../x","policy":"` + encode("package policy\ntrust_claims := {}") + `"}`, all, 400, kbs.KindParsePolicy, "id"},
		{"GET", kbs.PathAttestationPolicy, "", all, 200, "", `["default_cpu"]`},
		{"GET", kbs.PathAttestationPolicy + "/default_cpu", "", all, 200, "", `hardware`},
		{"GET", kbs.PathAttestationPolicy + "/none", "", all, 404, kbs.KindNotFound, ""},
		{"DELETE", kbs.PathAttestationPolicy + "/default_cpu", "", all, 200, "", ""},
		{"POST", kbs.PathReferenceValue, values, auditor, 401, kbs.KindAdminAuth, ""},
		{"POST", kbs.PathReferenceValue, values, token(admin.RoleReferences), 200, "", ""},
		{"POST", kbs.PathReferenceValue, `{"x":null}`, all, 400, kbs.KindReference, ""},
		{"GET", kbs.PathReferenceValue + "/snp_launch_measurement", "", auditor, 200, "", `["aa"]`},
		{"GET", kbs.PathReferenceValue + "/a/b", "", auditor, 200, "", `null`},
		{"GET", kbs.PathReferenceValue, "", auditor, 200, "", `"snp_launch_measurement"`},
		{"DELETE", kbs.PathReferenceValue + "/snp_launch_measurement", "", all, 200, "", ""},
		{"DELETE", kbs.PathReferenceValue + "/snp_launch_measurement", "", all, 404, kbs.KindNotFound, ""},
		{"GET", kbs.PathStatus, "", auditor, 200, "", `"resource_policy":"resource-policy (built-in)"`},
		{"GET", kbs.PathStatus, "", nil, 401, kbs.KindAdminAuth, ""},
		{"GET", kbs.PathReferenceValue, "", nil, 401, kbs.KindAdminAuth, ""},
		{"GET", kbs.PathReady, "", nil, 200, "", "ready"},
	} {
		w := g.send(tc.method, tc.path, []byte(tc.body), tc.edit)
		if w.Code != tc.status || !strings.Contains(w.Body.String(), tc.want) || kbs.ParseProblem(w.Body.Bytes()).Kind() != tc.kind {
			t.Errorf("step %d, %s %s: status %d %s", i, tc.method, tc.path, w.Code, w.Body)
		}
	}
	checkAdminRecords(t, b.Audit())
}

func checkAdminRecords(t *testing.T, records []audit.Record) {
	t.Helper()
	refusals, digests := 0, 0
	for _, r := range records {
		if r.Event != audit.EventAdmin {
			continue
		}
		if r.Decision == audit.Refused && r.Admin == "auditor" {
			refusals++
		}
		if strings.Contains(r.Object, "sha256:") && r.Admin != "" {
			digests++
		}
		if raw, err := json.Marshal(r); err != nil || strings.Contains(string(raw), "eyJ") {
			t.Errorf("record shows a token: %s, %v", raw, err)
		}
	}
	if refusals != 3 || digests != 4 {
		t.Errorf("%d refusals of the auditor and %d policies on record, want 3 and 4", refusals, digests)
	}
}

// An uploaded attestation policy decides what the token says, and the built-in resource policy what that is worth.
func TestAttestationPolicyDecides(t *testing.T) {
	b := start(t, brokertest.Options{})
	if err := b.Policies.SetAttestation(t.Context(), "default_cpu", `package policy
import rego.v1
default hardware := 97
hardware := 2 if input.sample.svn in query_reference_value("svn")
trust_claims := {"hardware": hardware}`); err != nil {
		t.Fatal(err)
	}
	if err := b.Policies.SetResource(t.Context(), `package policy
import rego.v1
default allow := false
allow if input.submods.cpu0["ear.status"] == "affirming"`); err != nil {
		t.Fatal(err)
	}
	g := newGuest(t, b)
	g.handshake()
	refused(t, g.get(nil), 401, kbs.KindPolicyDeny)
	if _, err := b.References.Register(t.Context(), []byte(`{"svn":["1"]}`)); err != nil {
		t.Fatal(err)
	}
	g = newGuest(t, b)
	g.handshake()
	g.open(g.get(nil))
}
