package server

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/owner/broker/audit"
	"github.com/coffer-project/coffer/owner/broker/client"
	"github.com/coffer-project/coffer/owner/broker/config"
	"github.com/coffer-project/coffer/owner/broker/keys"
	"github.com/coffer-project/coffer/proto/kbs"
)

var one = kbs.ResourceURI{Repository: "default", Type: "key", Tag: "1"}

// configured returns a configuration with everything in a temporary directory, and the admin's private key.
func configured(t *testing.T) (config.Config, []byte) {
	t.Helper()
	dir := t.TempDir()
	write := func(name string, data []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	private, public, err := keys.NewAdmin()
	if err != nil {
		t.Fatal(err)
	}
	token, err := keys.NewToken()
	if err != nil {
		t.Fatal(err)
	}
	c := config.Default()
	c.Server.Listen = "127.0.0.1:0"
	c.Attest.AllowSample = true
	c.Attest.TokenKeyFile = write("token.key", token)
	c.Store.Path, c.Store.MasterKeyFile = filepath.Join(dir, "store"), write("master.key", keys.NewMaster())
	c.Admin.PublicKeyFiles = []string{write("admin.pub", public)}
	c.Audit.File = filepath.Join(dir, "audit.jsonl")
	return c, private
}

func withTLS(t *testing.T, c *config.Config) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "kbs"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	dir := t.TempDir()
	c.Server.TLSCertFile, c.Server.TLSKeyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for name, data := range map[string][]byte{c.Server.TLSCertFile: certPEM, c.Server.TLSKeyFile: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})} {
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return certPEM
}

// run starts a server and returns its URL and a function that ends it and returns Run's error.
func run(t *testing.T, c config.Config) (string, func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	s, err := New(ctx, c)
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	url := s.URL()
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stop := func() error {
		cancel()
		return <-done
	}
	t.Cleanup(cancel)
	return url, stop
}

func TestServeAndRestart(t *testing.T) {
	c, private := configured(t)
	key, err := keys.ParseAdminPrivate(private)
	if err != nil {
		t.Fatal(err)
	}
	ca := withTLS(t, &c)
	for round := range 2 {
		url, stop := run(t, c)
		if !strings.HasPrefix(url, "https://127.0.0.1:") {
			t.Errorf("URL %s", url)
		}
		admin, err := client.New(client.Options{URL: url, CACertPEM: ca, Key: key})
		if err != nil {
			t.Fatal(err)
		}
		list, err := admin.List(t.Context())
		if err != nil || len(list) != round { // the second round finds what the first one stored
			t.Errorf("round %d: %v, %v", round, list, err)
		}
		if err := admin.Put(t.Context(), one, []byte("x")); err != nil {
			t.Fatal(err)
		}
		if err := stop(); err != nil {
			t.Errorf("round %d: %v", round, err)
		}
		if err := admin.Put(t.Context(), one, []byte("x")); !errors.Is(err, errdefs.ErrUnavailable) {
			t.Errorf("stopped broker: %v", err)
		}
	}
	raw, err := os.ReadFile(c.Audit.File)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(raw)), "\n")
	if len(lines) != 4 {
		t.Errorf("audit log: %s", raw)
	}
	for _, line := range lines {
		var r audit.Record
		if err := json.Unmarshal([]byte(line), &r); err != nil || r.Event != audit.EventAdmin || r.Decision != audit.Allowed {
			t.Errorf("audit record %s, %v", line, err)
		}
	}
}

func TestOldTLSIsRefused(t *testing.T) {
	c, _ := configured(t)
	withTLS(t, &c)
	url, _ := run(t, c)
	conn, err := tls.Dial("tcp", strings.TrimPrefix(url, "https://"), &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11})
	if err == nil {
		conn.Close()
		t.Error("TLS 1.1 was accepted")
	}
}

func TestHealth(t *testing.T) {
	c, _ := configured(t)
	url, _ := run(t, c)
	resp, err := http.Get(url + kbs.PathHealth)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("status %d", resp.StatusCode)
	}
}

func TestNewRefuses(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for name, tc := range map[string]struct {
		edit func(*config.Config)
		word string
	}{
		"http elsewhere": {func(c *config.Config) { c.Server.Listen = "0.0.0.0:0" }, "--insecure-http"},
		"port taken":     {func(c *config.Config) { c.Server.Listen = taken.Addr().String() }, "in use"},
		"token key":      {func(c *config.Config) { c.Attest.TokenKeyFile += "x" }, "token.keyx"},
		"wrong key":      {func(c *config.Config) { c.Attest.TokenKeyFile = c.Admin.PublicKeyFiles[0] }, "admin.pub"},
		"admin key":      {func(c *config.Config) { c.Admin.PublicKeyFiles[0] = c.Attest.TokenKeyFile }, "token.key"},
		"certificate":    {func(c *config.Config) { c.Server.TLSCertFile, c.Server.TLSKeyFile = "none", "none" }, "TLS certificate none"},
		"resources":      {func(c *config.Config) { c.Store.Path = c.Attest.TokenKeyFile }, "store directory"},
		"audit log":      {func(c *config.Config) { c.Audit.File = "/nonexistent/audit" }, "audit log"},
	} {
		t.Run(name, func(t *testing.T) {
			c, _ := configured(t)
			tc.edit(&c)
			s, err := New(t.Context(), c)
			if s != nil || err == nil || !strings.Contains(err.Error(), tc.word) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// A renewed certificate is used without a restart; half of one is not.
func TestCertificateIsReadAgain(t *testing.T) {
	c, _ := configured(t)
	withTLS(t, &c)
	url, _ := run(t, c)
	served := func() []byte {
		t.Helper()
		conn, err := tls.Dial("tcp", strings.TrimPrefix(url, "https://"), &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		return conn.ConnectionState().PeerCertificates[0].Raw
	}
	await := func(want []byte) {
		t.Helper()
		for t.Context().Err() == nil {
			if bytes.Equal(served(), want) {
				return
			}
		}
	}
	old := served()
	renewed := c
	block, _ := pem.Decode(withTLS(t, &renewed))
	replace := func(from, to string) {
		t.Helper()
		data, err := os.ReadFile(from)
		if err == nil {
			err = os.WriteFile(to+".new", data, 0o600)
		}
		if err == nil {
			err = os.Rename(to+".new", to)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	replace(renewed.Server.TLSCertFile, c.Server.TLSCertFile)
	if got := served(); !bytes.Equal(got, old) { // its key is not there yet
		t.Error("half of a certificate was used")
	}
	replace(renewed.Server.TLSKeyFile, c.Server.TLSKeyFile)
	await(block.Bytes)
}

func TestMetrics(t *testing.T) {
	c, private := configured(t)
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c.Metrics.Listen = free.Addr().String()
	free.Close()
	url, _ := run(t, c)
	key, err := keys.ParseAdminPrivate(private)
	if err != nil {
		t.Fatal(err)
	}
	admin, err := client.New(client.Options{URL: url, Key: key})
	if err != nil {
		t.Fatal(err)
	}
	if err := admin.Put(t.Context(), one, []byte("topsecret")); err != nil {
		t.Fatal(err)
	}
	for path, body := range map[string]string{kbs.PathAuth: "{}", kbs.PathAttest: "{}"} {
		resp, err := http.Post(url+path, "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
	resp, err := http.Get("http://" + c.Metrics.Listen + kbs.PathMetrics)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	// The names of Trustee's metrics.
	for _, want := range []string{
		"kbs_build_info{", "kbs_http_requests_total 3", "kbs_http_request_duration_seconds_count 3", "kbs_http_request_size_bytes_sum",
		"kbs_http_response_size_bytes_sum", "kbs_http_active_connections 0", `kbs_resource_writes_total{resource_path="default/key/1"} 1`,
		"kbs_policy_evaluations_total 0", "kbs_policy_approvals_total", "kbs_policy_violations_total", "kbs_policy_errors_total",
		"kbs_attestation_requests_total 1", "kbs_attestation_errors_total 1", "kbs_auth_requests_total 1", "kbs_auth_successes_total 0", "kbs_auth_errors_total 1",
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("%q is not in\n%s", want, text)
		}
	}
	if strings.Contains(string(text), "topsecret") {
		t.Error("metrics show a resource")
	}
	if resp, err := http.Get(url + kbs.PathMetrics); err != nil || resp.StatusCode != http.StatusNotFound {
		t.Errorf("metrics on the broker's own address: %v, %v", resp, err)
	} else {
		resp.Body.Close()
	}
}

// Each kind of store serves a broker, and what one process stored is there for the next.
func TestStores(t *testing.T) {
	for _, kind := range []config.Kind{config.Files, config.Bolt} {
		for _, master := range []bool{true, false} {
			c, private := configured(t)
			c.Store.Kind = kind
			if !master {
				c.Store.MasterKeyFile = ""
			}
			key, err := keys.ParseAdminPrivate(private)
			if err != nil {
				t.Fatal(err)
			}
			for round := range 2 {
				url, stop := run(t, c)
				admin, err := client.New(client.Options{URL: url, Key: key})
				if err != nil {
					t.Fatal(err)
				}
				if list, err := admin.List(t.Context()); err != nil || len(list) != round {
					t.Errorf("%s, round %d: %v, %v", kind, round, list, err)
				}
				if err := admin.Put(t.Context(), one, []byte("topsecret")); err != nil {
					t.Error(err)
				}
				if err := stop(); err != nil {
					t.Error(err)
				}
			}
			if plain := holds(t, c.Store.Path, "topsecret"); plain == master {
				t.Errorf("%s, master key %t: resource in the clear %t", kind, master, plain)
			}
			if master {
				other := filepath.Join(t.TempDir(), "other.key")
				if err := os.WriteFile(other, keys.NewMaster(), 0o600); err != nil {
					t.Fatal(err)
				}
				wrong := c
				wrong.Store.MasterKeyFile = other
				if _, err := New(t.Context(), wrong); !errors.Is(err, errdefs.ErrFailedPrecondition) {
					t.Errorf("other master key: %v", err)
				}
				if err := c.Rewrap(t.Context(), other); err != nil {
					t.Fatal(err)
				}
				_, stop := run(t, wrong)
				if err := stop(); err != nil {
					t.Error(err)
				}
			}
		}
	}
}

// holds reports whether a file, or one below a directory, contains a text.
func holds(t *testing.T, path, text string) (found bool) {
	t.Helper()
	err := filepath.WalkDir(path, func(name string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		raw, err := os.ReadFile(name)
		found = found || bytes.Contains(raw, []byte(text))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}
