package harness

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// Registry is a CNCF Distribution process.
type Registry struct {
	// Host is what references begin with: address and port.
	Host string
	// Plain is true for http.
	Plain bool

	process *Process
	client  *http.Client
}

// Request is one line of a registry's access log.
type Request struct {
	// Client is the address that asked: NodeIP for the host, a pod's address for a guest.
	Client, Method, Path string
	Status               string
}

func startRegistry(ctx context.Context, ns *netNS, tools Tools, dir, name string, port int, ca *CA) (*Registry, error) {
	r := &Registry{Host: fmt.Sprintf("%s:%d", NodeIP, port), Plain: ca == nil}
	transport := &http.Transport{DialContext: ns.Dial}
	var tlsConfig string
	if ca != nil {
		cert, key, err := ca.issue(dir, name)
		if err != nil {
			return nil, err
		}
		tlsConfig = fmt.Sprintf("  tls:\n    certificate: %s\n    key: %s\n", cert, key)
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(ca.PEM)
		transport.TLSClientConfig = &tls.Config{RootCAs: roots}
	}
	r.client = &http.Client{Transport: transport}

	config := fmt.Sprintf(`version: 0.1
log:
  level: error
  accesslog:
    disabled: false
storage:
  filesystem:
    rootdirectory: %s
http:
  addr: %s
%s`, filepath.Join(dir, name), r.Host, tlsConfig)
	path := filepath.Join(dir, name+".yml")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		return nil, err
	}
	process, err := startProbed(ctx, dir, name, ns.command(tools.Registry, "serve", path), func(ctx context.Context) error {
		_, err := r.get(ctx, "/v2/")
		return err
	})
	if err != nil {
		return nil, err
	}
	r.process = process
	return r, nil
}

// URL is the registry's base address.
func (r *Registry) URL() string {
	if r.Plain {
		return "http://" + r.Host
	}
	return "https://" + r.Host
}

func (r *Registry) get(ctx context.Context, path string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.URL()+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := r.client.Do(req)
	if err != nil {
		return nil, err
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return resp, fmt.Errorf("get %s: %s", path, resp.Status)
	}
	return resp, nil
}

var accessLine = regexp.MustCompile(`^(\S+) - \S+ \[[^]]*\] "([A-Z]+) (\S+) [^"]*" (\d+)`)

// Mark remembers the end of the access log; Requests called with it tells only what came later.
func (r *Registry) Mark() (int64, error) {
	info, err := os.Stat(r.process.LogPath)
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// Requests are the requests for repository since mark, in order.
func (r *Registry) Requests(mark int64, repository string) ([]Request, error) {
	file, err := os.Open(r.process.LogPath)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if _, err := file.Seek(mark, 0); err != nil {
		return nil, err
	}
	var requests []Request
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		m := accessLine.FindStringSubmatch(lines.Text())
		if m == nil || !strings.HasPrefix(m[3], "/v2/"+repository+"/") {
			continue
		}
		client := m[1]
		if i := strings.LastIndexByte(client, ':'); i > 0 {
			client = client[:i]
		}
		requests = append(requests, Request{Client: client, Method: m[2], Path: m[3], Status: m[4]})
	}
	return requests, lines.Err()
}
