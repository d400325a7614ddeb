package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	rt "github.com/coffer-project/coffer/integration/registrytest"
)

// TestImageSignAndVerify: what one command signs, the other accepts, by a key and by a policy, and nothing else.
func TestImageSignAndVerify(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	t.Setenv(passwordVariable, "pass")
	for _, name := range []string{"team", "other"} {
		if out, err := runImage(t, "keygen", path(name)); err != nil || !strings.Contains(out, "id:      sha256:") {
			t.Fatalf("keygen: %v\n%s", err, out)
		}
	}
	if info, err := os.Stat(path("team.key")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("private key: %v, %v", info, err)
	}
	if _, err := runImage(t, "keygen", path("team")); err == nil {
		t.Error("a key was overwritten")
	}
	r := rt.Start(t)
	image := func(arch string) *rt.Image {
		return rt.NewImage([]rt.Layer{rt.NewLayer(rt.Gzip, rt.Entry{Name: arch})}, func(c *ocispec.Image) { c.Architecture = arch }, nil)
	}
	ref := r.Put("app", "1", rt.NewIndex(map[string]*rt.Image{"linux/amd64": image("amd64"), "linux/arm64": image("arm64")}))
	if out, err := runImage(t, "verify", "--key", path("team.pub"), ref); err == nil || !strings.Contains(err.Error(), "has no signature that counts") {
		t.Fatalf("unsigned: %v\n%s", err, out)
	}
	out, err := runImage(t, "sign", "--key", path("team.key"), "--annotation", "build=7", ref)
	if err != nil || strings.Count(out, "signed sha256:") != 3 {
		t.Fatalf("sign: %v\n%s", err, out)
	}
	if out, err = runImage(t, "verify", "--key", path("other.pub"), "--key", path("team.pub"), ref); err != nil || strings.Count(out, "may run") != 2 {
		t.Errorf("signed: %v\n%s", err, out)
	}
	if out, err = runImage(t, "verify", "--key", path("other.pub"), ref); err == nil || strings.Count(out, "refused") != 2 || !strings.Contains(err.Error(), "not made with the policy's key") {
		t.Errorf("another key: %v\n%s", err, out)
	}
	policy := `{"default":[{"type":"reject"}],"transports":{"docker":{"` + r.Addr() + `":[{"type":"sigstoreSigned","keyPath":"kbs:///default/keys/team"}]}}}`
	if err := os.WriteFile(path("policy.json"), []byte(policy), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err = runImage(t, "verify", "--policy", path("policy.json"), "--broker-key", "kbs:///default/keys/team="+path("team.pub"), "--platform", "linux/arm64", ref)
	if err != nil || strings.Count(out, "may run, by scope "+r.Addr()) != 1 || !strings.Contains(out, "kbs:///default/keys/team") {
		t.Errorf("policy: %v\n%s", err, out)
	}
	wrong := path("password")
	if err := os.WriteFile(wrong, []byte("no\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		args []string
		text string
	}{
		"wrong password":   {[]string{"sign", "--key", path("team.key"), "--password-file", wrong, ref}, "password is wrong"},
		"public key":       {[]string{"sign", "--key", path("team.pub"), ref}, "no private key"},
		"unknown form":     {[]string{"sign", "--key", path("team.key"), "--form", "x", ref}, `form "x"`},
		"bad annotation":   {[]string{"sign", "--key", path("team.key"), "--annotation", "x", ref}, "KEY=VALUE"},
		"folder":           {[]string{"sign", "--key", path("team.key"), "oci:" + dir}, "kept in registries"},
		"no image":         {[]string{"sign", "--key", path("team.key")}, "got 0 arguments"},
		"nothing to judge": {[]string{"verify", ref}, "either --policy or --key"},
		"key is missing":   {[]string{"verify", "--policy", path("policy.json"), ref}, "give --broker-key kbs:///default/keys/team=FILE"},
		"no such platform": {[]string{"verify", "--key", path("team.pub"), "--platform", "linux/s390x", ref}, "no image for platform"},
		"unknown key type": {[]string{"keygen", "--type", "dsa", path("x")}, "dsa"},
	} {
		if _, err := runImage(t, tc.args...); err == nil || !strings.Contains(err.Error(), tc.text) {
			t.Errorf("%s: got %v, want %q", name, err, tc.text)
		}
	}
	t.Setenv(passwordVariable, "")
	if _, err := runImage(t, "keygen", path("x")); err == nil || !strings.Contains(err.Error(), "needs a password") {
		t.Errorf("no password: %v", err)
	}
}
