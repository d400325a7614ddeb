package config

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"os"

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

// AdminKeys reads the public keys of the admins.
func (c Config) AdminKeys() ([]ed25519.PublicKey, error) {
	var admins []ed25519.PublicKey
	for _, name := range c.Admin.PublicKeyFiles {
		raw, err := os.ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("read admin key: %w", err)
		}
		key, err := keys.ParseAdminPublic(raw)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		admins = append(admins, key)
	}
	return admins, nil
}

// Certificate reads the server's certificate, or returns nil where the broker speaks plain http.
func (c Config) Certificate() (*tls.Certificate, error) {
	if !c.TLS() {
		return nil, nil
	}
	cert, err := tls.LoadX509KeyPair(c.Server.TLSCertFile, c.Server.TLSKeyFile)
	if err != nil {
		return nil, fmt.Errorf("load TLS certificate %s and key: %w", c.Server.TLSCertFile, err)
	}
	return &cert, nil
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
