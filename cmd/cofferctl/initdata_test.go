package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/urfave/cli/v2"

	"github.com/coffer-project/coffer/owner/broker/brokertest"
	"github.com/coffer-project/coffer/owner/broker/keys"
	"github.com/coffer-project/coffer/proto/initdata"
)

// runCommand runs one command of the tool and returns what it prints.
func runCommand(t *testing.T, stdin string, command *cli.Command, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	app := &cli.App{
		Name: "cofferctl", Commands: []*cli.Command{command}, Reader: strings.NewReader(stdin), Writer: &out, ErrWriter: &out,
		ExitErrHandler: func(*cli.Context, error) {},
	}
	err := app.RunContext(context.WithoutCancel(t.Context()), append([]string{"cofferctl"}, args...))
	return out.String(), err
}

func TestInitdataCreate(t *testing.T) {
	b := brokertest.Start(t, brokertest.Options{TLS: true}) // for a certificate
	dir := t.TempDir()
	ca := filepath.Join(dir, "ca.pem")
	if err := os.WriteFile(ca, b.CACertPEM, 0o600); err != nil {
		t.Fatal(err)
	}
	flags := []string{"initdata", "create", "--kbs-url", "https://10.0.0.1:8443", "--kbs-cert", ca, "--extra-ca", ca,
		"--insecure-registry", "10.0.0.1:5000", "--mirror", "docker.io=http://10.0.0.1:5000/hub", "--mirror", "docker.io=mirror.example"}
	text, err := runCommand(t, "", initdataCommand(), flags...)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := initdata.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	cdh, err := initdata.ParseCDH(doc.Data[initdata.KeyCDH])
	if err != nil {
		t.Fatal(err)
	}
	if cdh.KBC.URL != "https://10.0.0.1:8443" || cdh.KBC.Cert != string(b.CACertPEM) || len(cdh.Image.ExtraRoots) != 1 {
		t.Errorf("got %+v", cdh)
	}
	registries := cdh.Image.Registries.Registries
	if len(registries) != 2 || !registries[0].Insecure || registries[1].Insecure || len(registries[1].Mirrors) != 2 || !registries[1].Mirrors[0].Insecure || registries[1].Mirrors[1].Insecure {
		t.Errorf("registries %+v", registries)
	}
	aa, err := initdata.ParseAA(doc.Data[initdata.KeyAA])
	if err != nil || aa.TokenConfigs.KBS.URL != "https://10.0.0.1:8443" {
		t.Errorf("got %+v, %v", aa, err)
	}
	var digests []string
	for _, format := range []string{"toml", "annotation", "disk"} {
		form, err := runCommand(t, "", initdataCommand(), append(flags, "--format", format)...)
		if err != nil {
			t.Fatal(err)
		}
		digest, err := runCommand(t, form, initdataCommand(), "initdata", "digest", "-")
		if err != nil {
			t.Fatal(err)
		}
		digests = append(digests, digest)
	}
	if digests[0] != digests[1] || digests[1] != digests[2] || !strings.HasPrefix(digests[0], "sha384:") {
		t.Errorf("digests differ: %q", digests)
	}
	shown, err := runCommand(t, text, initdataCommand(), "initdata", "inspect", "-")
	if err != nil || !strings.Contains(shown, "https://10.0.0.1:8443") || !strings.Contains(shown, "docker.io") {
		t.Errorf("got %s, %v", shown, err)
	}
}

// TestInitdataSecrets: what the flags say, the guest reads.
func TestInitdataSecrets(t *testing.T) {
	text, err := runCommand(t, "", initdataCommand(), "initdata", "create", "--default-policy", "development", "--secret-signer", "kbs:///a/b/c", "--secret-signer", "kbs:///a/b/d")
	if err != nil {
		t.Fatal(err)
	}
	doc, err := initdata.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	got, err := doc.Coffer()
	if err != nil || got.Policy.Default != initdata.DefaultDevelopment || !slices.Equal(got.Secrets.Signers, []string{"kbs:///a/b/c", "kbs:///a/b/d"}) || got.Secrets.Unsigned {
		t.Errorf("read %+v, %v", got, err)
	}
	if text, err = runCommand(t, "", initdataCommand(), "initdata", "create", "--unsigned-secrets"); err != nil {
		t.Fatal(err)
	}
	if doc, err = initdata.Parse([]byte(text)); err != nil {
		t.Fatal(err)
	}
	if got, err = doc.Coffer(); err != nil || !got.Secrets.Unsigned || got.Policy.Default != initdata.DefaultStrict {
		t.Errorf("read %+v, %v", got, err)
	}
	for _, args := range [][]string{{"--secret-signer", "team"}, {"--secret-signer", "kbs:///a/b/c", "--unsigned-secrets"}} {
		if _, err := runCommand(t, "", initdataCommand(), append([]string{"initdata", "create"}, args...)...); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", args, err)
		}
	}
}

func TestInitdataRefuses(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	cdh := file("cdh.toml", "[kbc]\nname = \"cc_kbc\"\nurl = \"http://kbs\"\n")
	for name, tc := range map[string]struct {
		args []string
		want error
	}{
		"nothing":     {nil, errdefs.ErrInvalidArgument},
		"url":         {[]string{"--kbs-url", "kbs"}, errdefs.ErrInvalidArgument},
		"cert alone":  {[]string{"--kbs-cert", cdh}, errdefs.ErrInvalidArgument},
		"bad cert":    {[]string{"--kbs-url", "https://kbs", "--kbs-cert", cdh}, errdefs.ErrInvalidArgument},
		"algorithm":   {[]string{"--kbs-url", "https://kbs", "--algorithm", "md5"}, errdefs.ErrInvalidArgument},
		"format":      {[]string{"--kbs-url", "https://kbs", "--format", "json"}, errdefs.ErrInvalidArgument},
		"mirror":      {[]string{"--mirror", "docker.io"}, errdefs.ErrInvalidArgument},
		"both":        {[]string{"--cdh", cdh, "--kbs-url", "https://kbs"}, errdefs.ErrInvalidArgument},
		"missing":     {[]string{"--cdh", filepath.Join(dir, "none")}, os.ErrNotExist},
		"bad cdh":     {[]string{"--cdh", file("bad.toml", "x = 1")}, errdefs.ErrInvalidArgument},
		"unsupported": {[]string{"--cdh", file("policy.toml", "[[credentials]]\npath = \"x\"")}, errdefs.ErrNotImplemented},
		"argument":    {[]string{"x"}, errdefs.ErrInvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			if out, err := runCommand(t, "", initdataCommand(), append([]string{"initdata", "create"}, tc.args...)...); !errors.Is(err, tc.want) {
				t.Errorf("got %q, %v", out, err)
			}
		})
	}
	if _, err := runCommand(t, "noise", initdataCommand(), "initdata", "inspect", "-"); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("inspect of noise: %v", err)
	}
}

func TestKBSResource(t *testing.T) {
	b := brokertest.Start(t, brokertest.Options{TLS: true})
	dir := t.TempDir()
	ca, key := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "admin.key")
	if err := os.WriteFile(ca, b.CACertPEM, 0o600); err != nil {
		t.Fatal(err)
	}
	private, err := keys.EncodeAdminPrivate(b.AdminKey)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(key, private, 0o600); err != nil {
		t.Fatal(err)
	}
	flags := []string{"--url", b.URL, "--ca", ca, "--admin-key", key}
	resource := func(stdin, verb string, args ...string) (string, error) {
		return runCommand(t, stdin, kbsCommand(), append(append([]string{"kbs", "resource", verb}, flags...), args...)...)
	}
	if out, err := resource("secret", "put", "kbs:///default/key/1", "-"); err != nil || strings.Contains(out, "secret") {
		t.Errorf("put: %q, %v", out, err)
	}
	if out, err := resource("", "list"); err != nil || out != "kbs:///default/key/1\n" {
		t.Errorf("list: %q, %v", out, err)
	}
	if _, err := resource("", "delete", "kbs:///default/key/1"); err != nil {
		t.Errorf("delete: %v", err)
	}
	if _, err := resource("", "delete", "kbs:///default/key/1"); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("second delete: %v", err)
	}
	if _, err := resource("", "put", "kbs:///default/key/1"); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("no file: %v", err)
	}
	if _, err := resource("x", "put", "/default/key/1", "-"); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("no URI: %v", err)
	}
}

func TestAdminKeygen(t *testing.T) {
	name := filepath.Join(t.TempDir(), "admin")
	if _, err := runCommand(t, "", kbsCommand(), "kbs", "admin-keygen", name); err != nil {
		t.Fatal(err)
	}
	private, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	public, err := os.ReadFile(name + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	key, err := keys.ParseAdminPrivate(private)
	if err != nil {
		t.Fatal(err)
	}
	if half, err := keys.ParseAdminPublic(public); err != nil || !half.Equal(key.Public()) {
		t.Errorf("halves do not fit: %v", err)
	}
	if info, err := os.Stat(name); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if _, err := runCommand(t, "", kbsCommand(), "kbs", "admin-keygen", name); !errors.Is(err, errdefs.ErrAlreadyExists) {
		t.Errorf("second run: %v", err)
	}
}
