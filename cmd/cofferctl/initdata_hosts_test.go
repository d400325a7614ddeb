package main

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/integration/testcert"
	"github.com/coffer-project/coffer/proto/initdata"
)

func TestInitdataRegistries(t *testing.T) {
	authority, err := testcert.New("corp")
	if err != nil {
		t.Fatal(err)
	}
	certs := t.TempDir()
	write := func(name, text string) {
		path := filepath.Join(certs, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("docker.io/hosts.toml", "[host.\"https://mirror.example\"]\ncapabilities = [\"pull\"]\nca = \"corp.crt\"\n")
	write("docker.io/corp.crt", string(authority.PEM))
	write("docker.io/notes.txt", "not taken")
	write("r.example:5000/hosts.toml", "server = \"https://r.example:5000\"\n")
	write("r.example:5000/corp.crt", string(authority.PEM))
	write("_default/hosts.toml", "[host.\"https://all.example\"]\n")

	args := []string{"initdata", "create", "--registry-hosts", certs, "--registry-auth", "kbs:///default/registry/auth",
		"--https-proxy", "http://proxy.example:3128", "--no-proxy", ".example"}
	text, err := runCommand(t, "", initdataCommand(), args...)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := initdata.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	hosts, err := doc.Hosts()
	if err != nil || len(hosts) != 3 || len(hosts["docker.io"]) != 2 || hosts["r.example:5000"][0].Address != "r.example:5000" || hosts[initdata.DefaultHosts] == nil {
		t.Errorf("hosts are %+v, %v", hosts, err)
	}
	cdh, err := initdata.ParseCDH(doc.Data[initdata.KeyCDH])
	if err != nil || cdh.Image.CredentialsURI != "kbs:///default/registry/auth" || cdh.Image.Proxy.HTTPS != "http://proxy.example:3128" || cdh.Image.Proxy.NoProxy != ".example" {
		t.Errorf("cdh.toml is %+v, %v", cdh, err)
	}
	if len(doc.Data) != 5 {
		t.Errorf("document has %d entries, want 5", len(doc.Data))
	}

	write("docker.io/client.pem", "-----BEGIN PRIVATE KEY-----\n")
	if _, err := runCommand(t, "", initdataCommand(), args...); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("a private key was taken: %v", err)
	}
	if err := os.Remove(filepath.Join(certs, "docker.io/client.pem")); err != nil {
		t.Fatal(err)
	}
	write("r.example:5000/corp.crt", "another")
	if _, err := runCommand(t, "", initdataCommand(), args...); !errors.Is(err, errdefs.ErrAlreadyExists) {
		t.Errorf("two files of one name: %v", err)
	}
	if _, err := runCommand(t, "", initdataCommand(), "initdata", "create", "--registry-hosts", t.TempDir()); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("empty folder: %v", err)
	}
}
