package harness

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net/http"
	"os"

	"github.com/coffer-project/coffer/owner/broker/audit"
)

// Broker is a coffer-kbs process.
type Broker struct {
	// URL is where guests and admins reach it.
	URL string
	// AdminKey is the file with the admin's private key.
	AdminKey string

	process *Process
	audit   string
}

// startBroker starts a broker with TLS that believes the node's guests: forged ones, or those of the sample TEE.
func (n *Node) startBroker(ctx context.Context) (*Broker, error) {
	cert, key, err := n.CA.issue(n.Dir, "broker")
	if err != nil {
		return nil, err
	}
	b := &Broker{URL: "https://" + NodeIP + ":8443", AdminKey: n.path("admin.key"), audit: n.path("audit.jsonl")}
	public := n.path("admin.pub")
	if err := run(ctx, n.Tools.Broker, "keygen", "--dir", n.Dir); err != nil {
		return nil, err
	}
	config := fmt.Sprintf(`[server]
listen = "%s:8443"
tls_cert_file = %q
tls_key_file = %q
%s[store]
path = %q
master_key_file = %q
[admin]
public_key_files = [%q]
[audit]
file = %q
`, NodeIP, cert, key, n.believed(), n.path("broker"), n.path("master.key"), public, b.audit)
	path := n.path("kbs.toml")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(n.CA.PEM)
	client := &http.Client{Transport: &http.Transport{DialContext: n.ns.Dial, TLSClientConfig: &tls.Config{RootCAs: roots}}}
	b.process, err = startProbed(ctx, n.Dir, "broker", n.ns.command(n.Tools.Broker, "serve", "--config", path), func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, b.URL+"/healthz", nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		return resp.Body.Close()
	})
	return b, err
}

// Released returns the attested claims of every guest to which the broker gave resource, in order.
func (b *Broker) Released(resource string) ([]map[string]any, error) {
	file, err := os.Open(b.audit)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	// A release names the token's claims by digest; the attest record before it shows them.
	known := map[string]map[string]any{}
	var released []map[string]any
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var r audit.Record
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			return nil, fmt.Errorf("read the broker's audit log: %w", err)
		}
		switch {
		case r.Event == audit.EventAttest && r.Decision == audit.Allowed:
			var claims map[string]any
			if err := json.Unmarshal(r.Claims, &claims); err != nil {
				return nil, fmt.Errorf("read the claims in the broker's audit log: %w", err)
			}
			known[r.ClaimsDigest] = map[string]any{"tee": r.TEE, "claims": claims}
		case r.Event == audit.EventRelease && r.Decision == audit.Allowed && r.Resource == resource:
			released = append(released, known[r.ClaimsDigest])
		}
	}
	return released, lines.Err()
}

func (b *Broker) proc() *Process {
	if b == nil {
		return nil
	}
	return b.process
}
