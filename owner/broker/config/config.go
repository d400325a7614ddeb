// Package config is coffer-kbs's configuration file. It is the only package of the broker that reads files on its behalf, besides the
// resource store.
package config

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/pelletier/go-toml/v2"

	"github.com/coffer-project/coffer/owner/broker/admin"
)

// DefaultPath is where the file is looked for unless told otherwise.
const DefaultPath = "/etc/coffer/kbs.toml"

// Duration is a time.Duration that is written as text, for example "5m".
type Duration time.Duration

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(text []byte) error {
	parsed, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("%.32q is not a duration such as \"5m\"", text)
	}
	*d = Duration(parsed)
	return nil
}

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// Config is the whole file.
type Config struct {
	LogLevel string   `toml:"log_level" comment:"trace, debug, info, warn or error"`
	Server   Server   `toml:"server"`
	Attest   Attest   `toml:"attestation"`
	Evidence Evidence `toml:"evidence"`
	Store    Store    `toml:"store"`
	Admin    Admin    `toml:"admin"`
	Audit    Audit    `toml:"audit"`
	Metrics  Metrics  `toml:"metrics"`
}

// Server is the listening side.
type Server struct {
	Listen       string   `toml:"listen" comment:"host:port to listen on"`
	TLSCertFile  string   `toml:"tls_cert_file" comment:"certificate chain and key in PEM, read again when they change; without them the broker speaks plain http, on loopback only"`
	TLSKeyFile   string   `toml:"tls_key_file"`
	InsecureHTTP bool     `toml:"insecure_http" comment:"allow plain http on other addresses than loopback"`
	RequestsPer  int      `toml:"requests_per_sec" comment:"per peer address"`
	RequestBurst int      `toml:"request_burst"`
	ShutdownWait Duration `toml:"shutdown_wait" comment:"how long running requests may take to finish on shutdown"`
}

// Attest says which guests are believed and for how long.
type Attest struct {
	AllowSample     bool     `toml:"allow_sample" comment:"accept the sample tee, which proves nothing: for development only"`
	TokenKeyFile    string   `toml:"token_key_file" comment:"EC P-256 key in PEM that signs tokens and seals sessions; empty makes a new one at each start. Brokers behind one address need the same one"`
	TokenCertFile   string   `toml:"token_cert_file" comment:"its certificate chain in PEM, put into tokens; optional"`
	TokenLifetime   Duration `toml:"token_lifetime"`
	SessionLifetime Duration `toml:"session_lifetime"`
	MaxSessions     int      `toml:"max_sessions" comment:"used sessions that are remembered in memory; beyond them the oldest guests attest again"`
	ShareSessions   bool     `toml:"share_sessions" comment:"keep attested sessions in the store too, for several brokers behind one address"`
}

// Kind is a kind of store.
type Kind string

// The kinds of stores.
const (
	Files Kind = "files"
	Bolt  Kind = "bolt"
	Vault Kind = "vault"
)

// Store is where resources, policies and reference values are kept.
type Store struct {
	Kind          Kind       `toml:"kind" comment:"files (a directory), bolt (one file, one broker only) or vault (HashiCorp Vault or OpenBao, KV version 2)"`
	Path          string     `toml:"path" comment:"directory or file of the first two kinds, readable by the broker's user only"`
	MasterKeyFile string     `toml:"master_key_file" comment:"key (coffer-kbs keygen makes master.key) that encrypts all values at rest, or a pkcs11: URI in builds with the tag pkcs11; empty keeps them in the clear"`
	Vault         VaultStore `toml:"vault"`
}

// VaultStore is the third kind.
type VaultStore struct {
	URL       string `toml:"url" comment:"for example https://vault.example:8200"`
	Mount     string `toml:"mount" comment:"path of the secrets engine, and a folder in it"`
	Prefix    string `toml:"prefix"`
	Namespace string `toml:"namespace"`
	TokenFile string `toml:"token_file" comment:"access token, read again for each request"`
	CAFile    string `toml:"ca_file" comment:"the only CAs in PEM to trust; empty means the system's"`
}

// Metrics is the Prometheus endpoint.
type Metrics struct {
	Listen string `toml:"listen" comment:"host:port of /metrics and /healthz in plain http; metrics name resources. Empty switches them off"`
}

// Admin says who may change resources.
type Admin struct {
	PublicKeyFiles []string   `toml:"public_key_files" comment:"Ed25519 public keys in PEM of admins who may do everything; without any key nobody can manage the broker over the network"`
	Issuer         string     `toml:"issuer" comment:"required iss, aud and role claims of admin tokens; empty means any"`
	Audience       string     `toml:"audience"`
	Role           string     `toml:"role"`
	Keys           []AdminKey `toml:"keys,omitempty"`
}

// AdminKey is an admin whose rights are limited.
type AdminKey struct {
	Name  string       `toml:"name" comment:"for the audit log"`
	File  string       `toml:"file" comment:"Ed25519 public key in PEM"`
	Roles []admin.Role `toml:"roles" comment:"admin, resources, policies, references, auditor"`
}

// Audit is the audit log.
type Audit struct {
	File string `toml:"file" comment:"file that audit records are appended to; empty means standard output"`
}

// Default returns a complete configuration: plain http on loopback, no sample, no admins.
func Default() Config {
	return Config{
		LogLevel: "info",
		Server: Server{
			Listen:       "127.0.0.1:8080",
			RequestsPer:  50,
			RequestBurst: 200,
			ShutdownWait: Duration(10 * time.Second),
		},
		Attest: Attest{
			TokenLifetime:   Duration(5 * time.Minute),
			SessionLifetime: Duration(5 * time.Minute),
			MaxSessions:     10000,
		},
		Evidence: Evidence{CollateralDir: "/var/lib/coffer-kbs/collateral"},
		Store: Store{
			Kind: Files, Path: "/var/lib/coffer-kbs/store",
			Vault: VaultStore{Mount: "secret", Prefix: "coffer-kbs"},
		},
		Admin: Admin{PublicKeyFiles: []string{}},
	}
}

// Load reads a file over Default. Unknown keys are refused. It does not validate: flags may follow.
func Load(name string) (Config, error) {
	c := Default()
	raw, err := os.ReadFile(name)
	if err != nil {
		return c, fmt.Errorf("read configuration: %w", err)
	}
	dec := toml.NewDecoder(bytes.NewReader(raw)).DisallowUnknownFields()
	if err := dec.Decode(&c); err != nil {
		if missing, ok := errors.AsType[*toml.StrictMissingError](err); ok {
			return c, fmt.Errorf("configuration %s has unknown keys:\n%s: %w", name, missing.String(), errdefs.ErrInvalidArgument)
		}
		return c, fmt.Errorf("configuration %s: %w: %w", name, err, errdefs.ErrInvalidArgument)
	}
	return c, nil
}

// Encode returns the file's text with a comment for each key.
func (c Config) Encode() ([]byte, error) {
	raw, err := toml.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encode configuration: %w", err)
	}
	return raw, nil
}

// TLS reports whether the broker speaks https.
func (c Config) TLS() bool { return c.Server.TLSCertFile != "" || c.Server.TLSKeyFile != "" }

// Validate returns all faults at once, as InvalidArgument.
func (c Config) Validate() error {
	faults := c.serverFaults()
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	var level log.Level
	if err := level.UnmarshalText([]byte(c.LogLevel)); err != nil {
		fault("log_level %q is no log level", c.LogLevel)
	}
	for key, d := range map[string]Duration{"token_lifetime": c.Attest.TokenLifetime, "session_lifetime": c.Attest.SessionLifetime} {
		// Guests renew ten seconds before the end, so a shorter life would mean an attestation per key.
		if d < Duration(30*time.Second) || d > Duration(24*time.Hour) {
			fault("attestation.%s %s is not within 30s and 24h", key, time.Duration(d))
		}
	}
	if c.Attest.MaxSessions < 1 || c.Attest.MaxSessions > 1_000_000 {
		fault("attestation.max_sessions %d is not within 1 and 1000000", c.Attest.MaxSessions)
	}
	if c.Attest.TokenCertFile != "" && c.Attest.TokenKeyFile == "" {
		fault("attestation.token_cert_file is set without token_key_file")
	}
	faults = append(faults, c.Evidence.faults()...)
	if c.Attest.ShareSessions && c.Attest.TokenKeyFile == "" {
		fault("attestation.share_sessions needs token_key_file: brokers with different keys do not know each other's guests")
	}
	faults = append(faults, c.storeFaults()...)
	faults = append(faults, c.adminFaults()...)
	if len(faults) == 0 {
		return nil
	}
	return fmt.Errorf("configuration: %w: %w", errdefs.ErrInvalidArgument, errors.Join(faults...))
}

func (c Config) storeFaults() []error {
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	switch c.Store.Kind {
	case Files, Bolt:
		if c.Store.Path == "" {
			fault("store.path is missing")
		}
	case Vault:
		if c.Store.Vault.URL == "" || c.Store.Vault.TokenFile == "" {
			fault("store.vault.url and store.vault.token_file are needed for the kind vault")
		}
	default:
		fault("store.kind %q is none of files, bolt and vault", c.Store.Kind)
	}
	if c.Store.Kind == Bolt && c.Attest.ShareSessions {
		fault("attestation.share_sessions is of no use with store.kind bolt, which one broker only can open")
	}
	return faults
}

func (c Config) adminFaults() []error {
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	for i, name := range c.Admin.PublicKeyFiles {
		if name == "" {
			fault("admin.public_key_files[%d] is empty", i)
		}
	}
	for i, key := range c.Admin.Keys {
		if key.File == "" || key.Name == "" || len(key.Roles) == 0 {
			fault("admin.keys[%d] needs a name, a file and roles", i)
		}
		for _, role := range key.Roles {
			if err := role.Validate(); err != nil {
				fault("admin.keys[%d]: %w", i, err)
			}
		}
	}
	return faults
}

func (c Config) serverFaults() []error {
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	s := c.Server
	host, _, err := net.SplitHostPort(s.Listen)
	if err != nil {
		fault("server.listen %q is not host:port", s.Listen)
	}
	if (s.TLSCertFile == "") != (s.TLSKeyFile == "") {
		fault("server.tls_cert_file and server.tls_key_file go together, only one is set")
	}
	if err == nil && !c.TLS() && !s.InsecureHTTP && !isLoopback(host) {
		fault("server.listen %q is no loopback address and there is no TLS certificate: set tls_cert_file and tls_key_file, or --insecure-http on a network that you trust", s.Listen)
	}
	if s.RequestsPer < 1 || s.RequestBurst < 1 {
		fault("server.requests_per_sec and server.request_burst must be at least 1")
	}
	if _, _, err := net.SplitHostPort(c.Metrics.Listen); err != nil && c.Metrics.Listen != "" {
		fault("metrics.listen %q is not host:port", c.Metrics.Listen)
	}
	if s.ShutdownWait < 0 {
		fault("server.shutdown_wait is negative")
	}
	return faults
}

// isLoopback accepts literal addresses only, except for localhost: other names may resolve to anything.
func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
