package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/urfave/cli/v2"

	"github.com/coffer-project/coffer/proto/sealed"
)

func runSecret(t *testing.T, stdin string, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	app := &cli.App{Name: "cofferctl", Reader: strings.NewReader(stdin), Writer: &out, ErrWriter: io.Discard, Commands: []*cli.Command{secretCommand()}}
	err := app.RunContext(t.Context(), append([]string{"cofferctl", "secret"}, args...))
	return out.String(), err
}

// TestSecret: the guest's parser reads what the command writes, and the key that it writes checks the signature.
func TestSecret(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	t.Setenv(passwordVariable, "pass")
	for name, kind := range map[string]string{"team": "ecdsa-p256", "other": "ecdsa-p256", "wide": "ecdsa-p384", "ed": "ed25519"} {
		if out, err := runImage(t, "keygen", "--type", kind, path(name)); err != nil {
			t.Fatalf("keygen: %v\n%s", err, out)
		}
	}
	const name, signer = "kbs:///default/secret/db", "kbs:///default/signing/team"
	text, err := runSecret(t, "", "seal", "--key", path("team.key"), "--signer", signer, name)
	if err != nil {
		t.Fatal(err)
	}
	s, err := sealed.Parse(strings.TrimSpace(text))
	if err != nil || s.KeyID != signer || s.Vault == nil || s.Vault.Provider != sealed.ProviderKBS || s.Vault.Name != name {
		t.Fatalf("read %+v, %v", s, err)
	}
	jwk, err := runSecret(t, "", "public-key", path("team.pub"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path("team.jwk"), []byte(jwk), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, form := range []string{"team.jwk", "team.pub"} {
		out, err := runSecret(t, text, "inspect", "--key", path(form))
		if err != nil || !strings.Contains(out, "signature: by "+signer+", good") {
			t.Errorf("%s: %v\n%s", form, err, out)
		}
	}
	open, err := runSecret(t, "", "seal", "--unsigned", name)
	if err != nil {
		t.Fatal(err)
	}
	if s, err := sealed.Parse(strings.TrimSpace(open)); err != nil || s.Signed() || s.Vault.Name != name {
		t.Errorf("unsigned: %+v, %v", s, err)
	}
	for what, tc := range map[string]struct {
		args []string
		want error
		word string
	}{
		"no key":             {[]string{"seal", name}, errdefs.ErrInvalidArgument, "--unsigned"},
		"no signer":          {[]string{"seal", "--key", path("team.key"), name}, errdefs.ErrInvalidArgument, "--signer"},
		"signed or not":      {[]string{"seal", "--unsigned", "--signer", signer, name}, errdefs.ErrInvalidArgument, "--unsigned"},
		"signer is no name":  {[]string{"seal", "--key", path("team.key"), "--signer", "team", name}, errdefs.ErrInvalidArgument, "--signer"},
		"no resource":        {[]string{"seal", "--unsigned", "default/secret/db"}, errdefs.ErrInvalidArgument, "kbs:///repository/type/tag"},
		"another curve":      {[]string{"seal", "--key", path("wide.key"), "--signer", signer, name}, errdefs.ErrInvalidArgument, "ecdsa-p256"},
		"another algorithm":  {[]string{"seal", "--key", path("ed.key"), "--signer", signer, name}, errdefs.ErrInvalidArgument, "ecdsa-p256"},
		"key of another":     {[]string{"inspect", "--key", path("other.pub"), strings.TrimSpace(text)}, errdefs.ErrPermissionDenied, signer},
		"check the unsigned": {[]string{"inspect", "--key", path("team.pub"), strings.TrimSpace(open)}, errdefs.ErrPermissionDenied, "not signed"},
		"private key":        {[]string{"public-key", path("team.key")}, errdefs.ErrInvalidArgument, "PUBLIC KEY"},
		"nothing sealed":     {[]string{"inspect", "password"}, errdefs.ErrInvalidArgument, "HEADER.PAYLOAD.SIGNATURE"},
	} {
		if out, err := runSecret(t, "", tc.args...); !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.word) {
			t.Errorf("%s: %v\n%s", what, err, out)
		}
	}
}
