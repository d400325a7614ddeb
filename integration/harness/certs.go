package harness

import (
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"

	"github.com/coffer-project/coffer/integration/testcert"
)

// CA is a certificate authority made for one node.
type CA struct {
	*testcert.Authority
	// Path is a file with the authority's certificate.
	Path string
}

func newCA(dir string) (*CA, error) {
	authority, err := testcert.New("coffer test node CA")
	if err != nil {
		return nil, err
	}
	ca := &CA{Authority: authority, Path: filepath.Join(dir, "ca.pem")}
	return ca, os.WriteFile(ca.Path, ca.PEM, 0o600)
}

// issue writes <name>.pem and <name>.key for a server on NodeIP and loopback, and of further host names, and returns
// their paths.
func (ca *CA) issue(dir, name string, hosts ...string) (certPath, keyPath string, err error) {
	certificate, err := ca.Issue(append([]string{NodeIP, "127.0.0.1", "localhost"}, hosts...)...)
	if err != nil {
		return "", "", err
	}
	key, err := x509.MarshalPKCS8PrivateKey(certificate.PrivateKey)
	if err != nil {
		return "", "", err
	}
	certPath, keyPath = filepath.Join(dir, name+".pem"), filepath.Join(dir, name+".key")
	for path, block := range map[string]*pem.Block{
		certPath: {Type: "CERTIFICATE", Bytes: certificate.Certificate[0]}, keyPath: {Type: "PRIVATE KEY", Bytes: key},
	} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			return "", "", err
		}
	}
	return certPath, keyPath, nil
}
