package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/urfave/cli/v2"

	"github.com/coffer-project/coffer/owner/broker/admin"
	brokeraudit "github.com/coffer-project/coffer/owner/broker/audit"
	"github.com/coffer-project/coffer/owner/broker/brokertest"
	"github.com/coffer-project/coffer/owner/broker/keys"
)

// kbsRunner returns a function that runs cofferctl kbs against a broker, as an admin with a role.
func kbsRunner(t *testing.T, b *brokertest.Broker, role admin.Role) func(stdin string, args ...string) (string, error) {
	t.Helper()
	pem, err := keys.EncodeAdminPrivate(b.AdminKeyOf(t, role))
	if err != nil {
		t.Fatal(err)
	}
	key := filepath.Join(t.TempDir(), "admin.key")
	if err := os.WriteFile(key, pem, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("COFFER_KBS_URL", b.URL)
	return func(stdin string, args ...string) (string, error) {
		t.Helper()
		var out bytes.Buffer
		app := &cli.App{Name: "cofferctl", Reader: strings.NewReader(stdin), Writer: &out, ErrWriter: io.Discard, Commands: []*cli.Command{kbsCommand()}}
		t.Setenv("COFFER_KBS_ADMIN_KEY", key)
		err := app.RunContext(t.Context(), append([]string{"cofferctl", "kbs"}, args...))
		return out.String(), err
	}
}

func TestKBS(t *testing.T) {
	b := brokertest.Start(t, brokertest.Options{})
	run, audit := kbsRunner(t, b, admin.RoleAdmin), kbsRunner(t, b, admin.RoleAuditor)
	const measured = `{"snp_launch_measurement":["aa"],"snp_smt_allowed":true}`
	for i, step := range []struct {
		run     func(string, ...string) (string, error)
		stdin   string
		args    string
		want    []string // in the output
		wantErr error
	}{
		{run, "key bytes", "resource put kbs:///default/key/1 -", []string{"kbs:///default/key/1 9 bytes"}, nil},
		{audit, "", "resource list", []string{"kbs:///default/key/1\n"}, nil},
		{audit, "x", "resource put kbs:///default/key/2 -", nil, errdefs.ErrPermissionDenied},
		{run, "", "policy list", []string{"resource ", "built in", "sha256:"}, nil},
		{run, "package policy\nallow := false\n", "policy set resource -", nil, nil},
		{run, "package policy\nallow {", "policy set resource -", nil, errdefs.ErrInvalidArgument},
		{run, "package policy\ntrust_claims := {\"hardware\": 2}", "policy set default_cpu -", nil, nil},
		{audit, "", "policy show resource", []string{"allow := false\n"}, nil},
		{audit, "", "policy show default_gpu", []string{"trust_claims"}, nil},
		{audit, "", "policy list", []string{"handed in", "default_cpu"}, nil},
		{audit, "", "policy delete resource", nil, errdefs.ErrPermissionDenied},
		{run, "", "policy delete resource", nil, nil},
		{run, "", "policy delete resource", nil, errdefs.ErrNotFound},
		{run, measured, "reference import -", []string{"2 reference values"}, nil},
		{run, `{"snp_launch_measurement":["bb","aa"]}`, "reference import --add -", []string{"1 reference values"}, nil},
		{run, `{"x":{}}`, "reference import -", nil, errdefs.ErrInvalidArgument},
		{audit, "", "reference list", []string{"NAME ", "snp_launch_measurement", `"aa"`, `"bb"`, "true"}, nil},
		{run, "", "reference delete snp_smt_allowed", nil, nil},
		{run, "", "reference delete snp_smt_allowed", nil, errdefs.ErrNotFound},
		{audit, "", "status", []string{"sample", "resource-policy (built-in)", "default_cpu", "auditor (auditor)"}, nil},
		{run, "", "policy show", nil, errdefs.ErrInvalidArgument},
		{run, "", "resource delete kbs:///default/key/1", nil, nil},
	} {
		out, err := step.run(step.stdin, strings.Fields(step.args)...)
		if !errors.Is(err, step.wantErr) {
			t.Errorf("step %d, %s: %v", i, step.args, err)
		}
		for _, want := range step.want {
			if !strings.Contains(out, want) {
				t.Errorf("step %d, %s: %q is not in\n%s", i, step.args, want, out)
			}
		}
	}
	var log bytes.Buffer
	for _, r := range b.Audit() {
		line, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		log.Write(append(line, '\n'))
	}
	out, err := run(log.String(), "audit", "--refused", "-")
	if err != nil || !strings.Contains(out, "auditor DELETE") || !strings.Contains(out, "may not change policies") || strings.Contains(out, "  allowed  ") {
		t.Errorf("audit: %v\n%s", err, out)
	}
	if out, err = run(log.String(), "audit", "--resource", "kbs:///default/key/1", "-"); err != nil || strings.Count(out, "\n") != 3 {
		t.Errorf("audit of one resource: %v\n%s", err, out)
	}
	if _, err := run("no record", "audit", "-"); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("damaged audit log: %v", err)
	}
}

// A guest's GPUs are counted by generation and verdict.
func TestAuditShowsGPUs(t *testing.T) {
	gpu := func(arch, status string) string {
		return `{"ear.status":"` + status + `","ear.veraison.annotated-evidence":{"nvidia":{"arch":"` + arch + `"}}}`
	}
	record := `{"event":"attest","tee":"snp","decision":"allowed","claims":{"submods":{"cpu0":{"ear.status":"affirming"},"gpu0":` + gpu("Hopper", "affirming") +
		`,"gpu1":` + gpu("Hopper", "affirming") + `,"gpu2":` + gpu("Hopper", "warning") + `,"switch0":` + gpu("LS10", "affirming") + `}}}`
	var out bytes.Buffer
	if err := printAudit(&out, strings.NewReader(record), func(*brokeraudit.Record) bool { return true }); err != nil {
		t.Fatal(err)
	}
	if want := "snp affirming, 2 gpu Hopper affirming, 1 gpu Hopper warning, 1 switch LS10 affirming  allowed"; !strings.Contains(out.String(), want) {
		t.Errorf("%q is not in\n%s", want, out.String())
	}
}

func FuzzAudit(f *testing.F) {
	f.Add([]byte(`{"event":"attest","tee":"snp","claims":{"submods":{}},"decision":"allowed","reason":"x\u001b[2J"}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		var out bytes.Buffer
		if err := printAudit(&out, bytes.NewReader(raw), func(*brokeraudit.Record) bool { return true }); err == nil && bytes.ContainsRune(out.Bytes(), 0x1b) {
			t.Errorf("escape sequence in %q", out.String())
		}
	})
}
