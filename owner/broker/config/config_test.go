package config

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/owner/broker/admin"
)

func write(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "kbs.toml")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestDefaultIsValidAndReadsBack(t *testing.T) {
	if err := Default().Validate(); err != nil {
		t.Fatal(err)
	}
	raw, err := Default().Encode()
	if err != nil {
		t.Fatal(err)
	}
	c, err := Load(write(t, string(raw)))
	if err != nil {
		t.Fatal(err)
	}
	if again, err := c.Encode(); err != nil || string(again) != string(raw) {
		t.Errorf("not the same after reading:\n%s\n%v", again, err)
	}
	if c.Attest.AllowSample || c.Server.InsecureHTTP || len(c.Admin.PublicKeyFiles) != 0 {
		t.Errorf("default is not cautious: %+v", c)
	}
}

func TestLoad(t *testing.T) {
	c, err := Load(write(t, "[attestation]\ntoken_lifetime = \"1h\"\n"))
	if err != nil || c.Attest.TokenLifetime != Duration(time.Hour) || c.Attest.MaxSessions != Default().Attest.MaxSessions {
		t.Errorf("got %+v, %v", c, err)
	}
	for name, text := range map[string]string{
		"unknown key":   "[attestation]\nallow_samples = true\n",
		"unknown table": "[attest]\nallow_sample = true\n",
		"wrong type":    "[attestation]\nallow_sample = \"yes\"\n",
		"duration":      "[attestation]\ntoken_lifetime = \"5 minutes\"\n",
		"not TOML":      "{",
	} {
		if _, err := Load(write(t, text)); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if _, err := Load(filepath.Join(t.TempDir(), "missing")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
}

func TestValidate(t *testing.T) {
	for name, tc := range map[string]struct {
		edit  func(*Config)
		words []string // none: valid
	}{
		"loopback v6":      {func(c *Config) { c.Server.Listen = "[::1]:1" }, nil},
		"http elsewhere":   {func(c *Config) { c.Server.Listen = "10.0.0.1:80" }, []string{"server.listen", "--insecure-http"}},
		"http everywhere":  {func(c *Config) { c.Server.Listen = ":80" }, []string{"--insecure-http"}},
		"insecure":         {func(c *Config) { c.Server.Listen, c.Server.InsecureHTTP = ":80", true }, nil},
		"https elsewhere":  {func(c *Config) { c.Server.Listen, c.Server.TLSCertFile, c.Server.TLSKeyFile = ":443", "c", "k" }, nil},
		"half of TLS":      {func(c *Config) { c.Server.TLSCertFile = "c" }, []string{"go together"}},
		"certificate only": {func(c *Config) { c.Attest.TokenCertFile = "c" }, []string{"token_key_file"}},
		"vault":            {func(c *Config) { c.Store.Kind = Vault }, []string{"store.vault.url"}},
		"shared in bolt": {func(c *Config) {
			c.Store.Kind, c.Attest.ShareSessions, c.Attest.TokenKeyFile = Bolt, true, "k"
		}, []string{"share_sessions", "bolt"}},
		"shared without key": {func(c *Config) { c.Attest.ShareSessions = true }, []string{"token_key_file"}},
		"admin role": {func(c *Config) {
			c.Admin.Keys = []AdminKey{{Name: "ann", File: "k", Roles: []admin.Role{"root"}}, {Name: "bob"}}
		}, []string{"admin.keys[0]", "root", "admin.keys[1]"}},
		"metrics": {func(c *Config) { c.Metrics.Listen = "9464" }, []string{"metrics.listen"}},
		"all at once": {func(c *Config) {
			*c = Config{}
		}, []string{"log_level", "server.listen", "requests_per_sec", "token_lifetime", "session_lifetime", "max_sessions", "store.kind"}},
	} {
		t.Run(name, func(t *testing.T) {
			c := Default()
			tc.edit(&c)
			err := c.Validate()
			if (err == nil) != (tc.words == nil) {
				t.Fatalf("got %v", err)
			}
			for _, word := range tc.words {
				if !strings.Contains(err.Error(), word) || !errors.Is(err, errdefs.ErrInvalidArgument) {
					t.Errorf("%q is not in %v", word, err)
				}
			}
		})
	}
}
