package config

import (
	"crypto/ecdsa"
	"crypto/x509"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/coffer-project/coffer/owner/broker/admin"
	"github.com/coffer-project/coffer/owner/broker/keys"
)

// TokenKey reads the token key and its certificates. Without a file it makes a key that lives as long as the process.
func (c Config) TokenKey() (*ecdsa.PrivateKey, []*x509.Certificate, error) {
	if c.Attest.TokenKeyFile == "" {
		raw, err := keys.NewToken()
		if err != nil {
			return nil, nil, err
		}
		key, err := keys.ParseToken(raw)
		return key, nil, err
	}
	raw, err := os.ReadFile(c.Attest.TokenKeyFile)
	if err != nil {
		return nil, nil, fmt.Errorf("read token key: %w", err)
	}
	key, err := keys.ParseToken(raw)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", c.Attest.TokenKeyFile, err)
	}
	if c.Attest.TokenCertFile == "" {
		return key, nil, nil
	}
	if raw, err = os.ReadFile(c.Attest.TokenCertFile); err != nil {
		return nil, nil, fmt.Errorf("read token certificate: %w", err)
	}
	chain, err := keys.ParseChain(raw)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", c.Attest.TokenCertFile, err)
	}
	return key, chain, nil
}

// Admins reads the public keys of the admins.
func (c Config) Admins() ([]admin.Admin, error) {
	entries := slices.Clone(c.Admin.Keys)
	for _, name := range c.Admin.PublicKeyFiles {
		entries = append(entries, AdminKey{Name: filepath.Base(name), File: name, Roles: []admin.Role{admin.RoleAdmin}})
	}
	var admins []admin.Admin
	for _, entry := range entries {
		raw, err := os.ReadFile(entry.File)
		if err != nil {
			return nil, fmt.Errorf("read admin key: %w", err)
		}
		key, err := keys.ParseAdminPublic(raw)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", entry.File, err)
		}
		admins = append(admins, admin.Admin{Name: entry.Name, Key: key, Roles: entry.Roles})
	}
	return admins, nil
}

// Certificate reads the server's certificate, or returns nil where the broker speaks plain http.
func (c Config) Certificate() (*Certificate, error) {
	if !c.TLS() {
		return nil, nil
	}
	return newCertificate(c.Server.TLSCertFile, c.Server.TLSKeyFile)
}

// AuditFile opens the audit log for appending. The caller closes it.
func (c Config) AuditFile() (io.WriteCloser, error) {
	if c.Audit.File == "" {
		return keepOpen{os.Stdout}, nil
	}
	f, err := os.OpenFile(c.Audit.File, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open audit log: %w", err)
	}
	return f, nil
}

// keepOpen lends standard output.
type keepOpen struct{ io.Writer }

func (keepOpen) Close() error { return nil }
