package main

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/urfave/cli/v2"

	rt "github.com/coffer-project/coffer/integration/registrytest"
	"github.com/coffer-project/coffer/owner/broker/brokertest"
	"github.com/coffer-project/coffer/owner/seal"
)

func runImage(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	app := &cli.App{Name: "cofferctl", Writer: &out, ErrWriter: io.Discard, Commands: []*cli.Command{imageCommand()}}
	err := app.RunContext(t.Context(), append([]string{"cofferctl", "image"}, args...))
	return out.String(), err
}

func TestImageEncryptAndInspect(t *testing.T) {
	r := rt.Start(t)
	src := r.Put("app", "1", rt.NewImage([]rt.Layer{rt.NewLayer(rt.Gzip, rt.Entry{Name: "f", Body: "x"}), rt.NewLayer(rt.Zstd, rt.Entry{Name: "g"})}, nil, nil))
	dir := t.TempDir()
	key, layout := filepath.Join(dir, "key"), "oci:"+filepath.Join(dir, "layout")+":v1"
	const id = "kbs:///default/image/app"
	out, err := runImage(t, "encrypt", "--plain-http", "--key-id", id, "--key-file", key, "--layer", "1", src, layout)
	if err != nil || !strings.Contains(out, "1 of 2 layers encrypted") || !strings.Contains(out, id) {
		t.Fatalf("encrypt: %v\n%s", err, out)
	}
	made, err := os.ReadFile(key)
	if err != nil || len(made) != 32 {
		t.Fatalf("key file: %d bytes, %v", len(made), err)
	}
	// From the layout on, and with the key that is there now.
	if _, err := runImage(t, "encrypt", "--plain-http", "--key-id", id, "--key-file", key, "--layer", "0", layout, r.Ref("sealed", "1")); err != nil {
		t.Fatal(err)
	}
	out, err = runImage(t, "inspect", r.Ref("sealed", "1")) // http: it is on loopback
	if err != nil || strings.Count(out, id) != 2 || !strings.Contains(out, "tar+zstd+encrypted") {
		t.Fatalf("inspect: %v\n%s", err, out)
	}
	if again, err := os.ReadFile(key); err != nil || !bytes.Equal(again, made) {
		t.Error("an existing key was replaced")
	}
}

func TestImageEncryptHandsTheKeyToTheBroker(t *testing.T) {
	r, broker := rt.Start(t), brokertest.Start(t, brokertest.Options{TLS: true})
	src := r.Put("app", "1", rt.NewImage([]rt.Layer{rt.NewLayer(rt.Gzip, rt.Entry{Name: "f"})}, nil, nil))
	dir := t.TempDir()
	admin, ca, key := filepath.Join(dir, "admin.key"), filepath.Join(dir, "ca.pem"), filepath.Join(dir, "key")
	der, err := x509.MarshalPKCS8PrivateKey(broker.AdminKey)
	if err != nil {
		t.Fatal(err)
	}
	for name, raw := range map[string][]byte{admin: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), ca: broker.CACertPEM} {
		if err := os.WriteFile(name, raw, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	encrypt := func(extra ...string) error {
		args := append([]string{
			"encrypt", "--plain-http", "--key-id", "kbs:///default/image/app",
			"--kbs-url", broker.URL, "--kbs-ca", ca, "--admin-key", admin,
		}, extra...)
		_, err := runImage(t, append(args, src, r.Ref("sealed", "1"))...)
		return err
	}
	if err := encrypt(); err != nil {
		t.Fatal(err)
	}
	if known, err := broker.Admin(t).List(t.Context()); err != nil || len(known) != 1 || known[0].String() != "kbs:///default/image/app" {
		t.Fatalf("broker has %v, %v", known, err)
	}
	if err := encrypt(); !errors.Is(err, errdefs.ErrAlreadyExists) {
		t.Errorf("a key in use was replaced: %v", err)
	}
	if err := encrypt("--replace-key"); err != nil {
		t.Errorf("replace: %v", err)
	}
	if err := encrypt("--key-file", key); err != nil {
		t.Errorf("with a key of one's own: %v", err)
	}
}

func TestImageArguments(t *testing.T) {
	short := filepath.Join(t.TempDir(), "short")
	if err := os.WriteFile(short, []byte("short"), 0o600); err != nil {
		t.Fatal(err)
	}
	cases := map[string]struct {
		args []string
		text string
	}{
		"key would be lost":     {[]string{"encrypt", "--key-id", "kbs:///a/b/c", "x.y/a:1", "x.y/b:1"}, "would be lost"},
		"no admin key":          {[]string{"encrypt", "--key-id", "kbs:///a/b/c", "--kbs-url", "http://127.0.0.1:1", "x.y/a:1", "x.y/b:1"}, "--admin-key"},
		"malformed key id":      {[]string{"encrypt", "--key-id", "a/b/c", "--key-file", "k", "x.y/a:1", "x.y/b:1"}, "kbs:///repository/type/tag"},
		"key of wrong size":     {[]string{"encrypt", "--key-id", "kbs:///a/b/c", "--key-file", short, "x.y/a:1", "x.y/b:1"}, "has 5 bytes, want 32"},
		"unknown wrap":          {[]string{"encrypt", "--key-id", "kbs:///a/b/c", "--key-file", short, "--wrap-type", "ROT", "x.y/a:1", "x.y/b:1"}, "ROT"},
		"one argument":          {[]string{"encrypt", "--key-id", "kbs:///a/b/c", "x.y/a:1"}, "got 1 arguments"},
		"inspect without image": {[]string{"inspect"}, "want one image"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			if _, err := runImage(t, tc.args...); err == nil || !strings.Contains(err.Error(), tc.text) {
				t.Fatalf("got %v, want %q", err, tc.text)
			}
		})
	}
}

func TestParseLayout(t *testing.T) {
	cases := map[string][2]string{
		"oci:/a/b": {"/a/b", ""}, "oci:/a/b:tag": {"/a/b", "tag"}, "oci:/a:b/c": {"/a:b/c", ""}, "oci:dir": {"dir", ""}, "oci:dir:1": {"dir", "1"},
	}
	for name, want := range cases {
		if dir, tag, ok := parseLayout(name); !ok || dir != want[0] || tag != want[1] {
			t.Errorf("%s: %q %q %t", name, dir, tag, ok)
		}
	}
	if _, _, ok := parseLayout("docker.io/library/busybox:1"); ok {
		t.Error("a reference was taken for a layout")
	}
}

func TestProgress(t *testing.T) {
	for name, tc := range map[string]struct {
		terminal bool
		want     []string
	}{
		"terminal": {true, []string{"\r", "###############...............", "1 of 2 layers"}},
		"lines":    {false, []string{"layer aaaaaaaaaaaa  done (512 B)\n"}},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			p := &progress{out: &out, terminal: tc.terminal, layers: map[string]seal.Event{}}
			a, b := rt.Descriptor("", nil).Digest, rt.Descriptor("", nil).Digest
			a = a[:7] + "aaaaaaaaaaaa" + a[19:]
			p.update(seal.Event{Layer: a, Done: 512, Total: 512})
			p.update(seal.Event{Layer: a, Done: 512, Total: 512})
			p.update(seal.Event{Layer: b, Done: 0, Total: 512})
			p.finish()
			for _, want := range tc.want {
				if !strings.Contains(out.String(), want) {
					t.Errorf("%q is not in %q", want, out.String())
				}
			}
			if !tc.terminal && strings.Count(out.String(), "\n") != 1 {
				t.Errorf("more than one line: %q", out.String())
			}
		})
	}
}

func TestCredentials(t *testing.T) {
	file := filepath.Join(t.TempDir(), "auth.json")
	text := `{"auths":{"a.b:5000":{"auth":"bWU6c2VjcmV0"},"broken":{"auth":"%%"},"helper":{}}}`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	creds, err := readCredentials(file)
	if err != nil {
		t.Fatal(err)
	}
	if user, password, err := creds("a.b:5000"); err != nil || user != "me" || password != "secret" {
		t.Errorf("got %q %q %v", user, password, err)
	}
	for _, host := range []string{"unknown", "helper"} {
		if user, _, err := creds(host); err != nil || user != "" {
			t.Errorf("%s: %q %v", host, user, err)
		}
	}
	if _, _, err := creds("broken"); err == nil {
		t.Error("broken credentials were accepted")
	}
	if _, err := readCredentials("/does/not/exist"); err == nil {
		t.Error("a missing file that was asked for was accepted")
	}
}
