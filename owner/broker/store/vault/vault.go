// Package vault is a store in the KV secrets engine, version 2, of HashiCorp Vault or OpenBao. Any number of brokers may share it. A value
// is one secret, <mount>/<prefix>/<name>, with the fields data and encoding; a secret that was written by hand with only the field data
// is read as that text, as Trustee does.
package vault

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/owner/broker/store"
)

// Limits on exchanges with the server.
const (
	timeout  = 10 * time.Second
	maxReply = 4 << 20
	// maxListed bounds the names of one List.
	maxListed = 100_000
)

// encoding marks values that we wrote.
const encoding = "base64"

// Options say where the secrets are.
type Options struct {
	// URL is the server's base URL. https, or http to loopback.
	URL string
	// Mount is the path of the secrets engine, for example secret. Prefix is a folder in it; it may be empty.
	Mount, Prefix string
	// Namespace is for Vault Enterprise and OpenBao namespaces; usually empty.
	Namespace string
	// TokenFile holds the access token. It is read again for each request, so an agent may renew it.
	TokenFile string
	// CACertPEM, when not empty, holds the only CAs that may sign the server's certificate.
	CACertPEM []byte
}

// Store implements store.Store.
type Store struct {
	Options
	http *http.Client
}

// Open checks the options; it does not connect. Faults are InvalidArgument.
func Open(o Options) (*Store, error) {
	bad := func(reason string) (*Store, error) {
		return nil, fmt.Errorf("vault store: %s: %w", reason, errdefs.ErrInvalidArgument)
	}
	u, err := url.Parse(o.URL)
	switch {
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "":
		return bad("url is not https://host:port")
	case u.Scheme == "http" && !loopback(u.Hostname()):
		return bad("url is plain http to another machine: secrets and the token would travel in the clear")
	case o.TokenFile == "":
		return bad("token_file is missing")
	case o.Mount == "" || store.CheckFolder(o.Mount) != nil:
		return bad("mount is not a path of letters, digits, '_', '-' and '.'")
	case o.Prefix != "" && store.CheckFolder(o.Prefix) != nil:
		return bad("prefix is not a path of letters, digits, '_', '-' and '.'")
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConnsPerHost = 64
	if len(o.CACertPEM) > 0 {
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM(o.CACertPEM) {
			return bad("CA file holds no certificate in PEM")
		}
		transport.TLSClientConfig = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	}
	o.URL = strings.TrimSuffix(o.URL, "/")
	return &Store{Options: o, http: &http.Client{
		Transport: transport, Timeout: timeout,
		// A redirect would take the token elsewhere.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// Close implements store.Store.
func (s *Store) Close() error {
	s.http.CloseIdleConnections()
	return nil
}

// secret is the payload of one secret.
type secret struct {
	Data     *string `json:"data"`
	Encoding string  `json:"encoding,omitempty"`
}

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, name string) ([]byte, error) {
	if err := store.CheckName(name); err != nil {
		return nil, err
	}
	body, err := s.ask(ctx, http.MethodGet, s.path("data", name), nil)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	var reply struct {
		Data struct {
			Data *secret `json:"data"`
		} `json:"data"`
	}
	if err := json.Unmarshal(body, &reply); err != nil || reply.Data.Data == nil || reply.Data.Data.Data == nil {
		return nil, fmt.Errorf("read %s: the secret has no text field data: %w", name, errdefs.ErrFailedPrecondition)
	}
	found := reply.Data.Data
	if found.Encoding != encoding {
		return []byte(*found.Data), nil
	}
	data, err := base64.StdEncoding.DecodeString(*found.Data)
	if err != nil || len(data) > store.MaxValue {
		return nil, fmt.Errorf("read %s: the secret is not base64 of at most %d bytes: %w", name, store.MaxValue, errdefs.ErrFailedPrecondition)
	}
	return data, nil
}

// Put implements store.Store.
func (s *Store) Put(ctx context.Context, name string, data []byte) error {
	return s.write(ctx, name, data, nil)
}

// Create implements store.Store: a check-and-set with version 0 succeeds only where the secret does not exist.
func (s *Store) Create(ctx context.Context, name string, data []byte) error {
	return s.write(ctx, name, data, map[string]int{"cas": 0})
}

func (s *Store) write(ctx context.Context, name string, data []byte, options map[string]int) error {
	if err := store.CheckName(name); err != nil {
		return err
	}
	if err := store.CheckValue(name, data); err != nil {
		return err
	}
	text := base64.StdEncoding.EncodeToString(data)
	document := map[string]any{"data": secret{Data: &text, Encoding: encoding}}
	if options != nil {
		document["options"] = options
	}
	body, err := json.Marshal(document)
	if err != nil {
		return fmt.Errorf("encode %s: %w", name, err)
	}
	if _, err := s.ask(ctx, http.MethodPost, s.path("data", name), body); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}

// Delete implements store.Store. All versions go.
func (s *Store) Delete(ctx context.Context, name string) error {
	if err := store.CheckName(name); err != nil {
		return err
	}
	// The server deletes what does not exist without complaint.
	if _, err := s.ask(ctx, http.MethodGet, s.path("data", name), nil); err != nil {
		return fmt.Errorf("delete %s: %w", name, err)
	}
	if _, err := s.ask(ctx, http.MethodDelete, s.path("metadata", name), nil); err != nil {
		return fmt.Errorf("delete %s: %w", name, err)
	}
	return nil
}

// List implements store.Store.
func (s *Store) List(ctx context.Context, folder string) ([]string, error) {
	if err := store.CheckFolder(folder); err != nil {
		return nil, err
	}
	names := []string{}
	folders := []string{folder}
	for len(folders) > 0 {
		folder := folders[0]
		folders = folders[1:]
		body, err := s.ask(ctx, http.MethodGet, s.path("metadata", folder)+"?list=true", nil)
		if errdefs.IsNotFound(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", folder, err)
		}
		var reply struct {
			Data struct {
				Keys []string `json:"keys"`
			} `json:"data"`
		}
		if err := json.Unmarshal(body, &reply); err != nil {
			return nil, fmt.Errorf("list %s: the server's answer is not the expected JSON: %w", folder, errdefs.ErrInternal)
		}
		for _, key := range reply.Data.Keys {
			inner, isFolder := strings.CutSuffix(folder+"/"+key, "/")
			switch {
			case isFolder && store.CheckFolder(inner) == nil:
				folders = append(folders, inner)
			case !isFolder && store.CheckName(inner) == nil:
				names = append(names, inner)
			}
		}
		if len(names)+len(folders) > maxListed {
			return nil, fmt.Errorf("list %s: more than %d names: %w", folder, maxListed, errdefs.ErrResourceExhausted)
		}
	}
	slices.Sort(names)
	return names, nil
}

func (s *Store) path(api, name string) string {
	if s.Prefix != "" {
		name = s.Prefix + "/" + name
	}
	return s.URL + "/v1/" + s.Mount + "/" + api + "/" + name
}

// ask makes one request and returns the body of a success.
func (s *Store) ask(ctx context.Context, method, address string, body []byte) ([]byte, error) {
	token, err := os.ReadFile(s.TokenFile)
	if err != nil {
		return nil, fmt.Errorf("read vault token: %w", err)
	}
	r, err := http.NewRequestWithContext(ctx, method, address, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("build request: %w", err)
	}
	r.Header.Set("X-Vault-Token", strings.TrimSpace(string(token)))
	r.Header.Set("X-Vault-Request", "true")
	if s.Namespace != "" {
		r.Header.Set("X-Vault-Namespace", s.Namespace)
	}
	resp, err := s.http.Do(r)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, fmt.Errorf("vault cannot be reached: %w: %w", err, errdefs.ErrUnavailable)
	}
	defer resp.Body.Close()
	reply, err := io.ReadAll(io.LimitReader(resp.Body, maxReply+1))
	if err != nil || len(reply) > maxReply {
		return nil, fmt.Errorf("vault's answer ended early or is too large: %w", errdefs.ErrUnavailable)
	}
	if resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusNoContent {
		return reply, nil
	}
	return nil, statusError(resp.StatusCode, reply)
}

// statusError turns a refusal into an error. The server's own words are for the broker's log: they name paths, not values.
func statusError(status int, body []byte) error {
	var reply struct {
		Errors []string `json:"errors"`
	}
	_ = json.Unmarshal(body, &reply) // what is no such document says nothing
	said := strings.Join(reply.Errors, "; ")
	if len(said) > 300 {
		said = said[:300]
	}
	var class error = errdefs.ErrInternal
	switch {
	case status == http.StatusNotFound:
		return errdefs.ErrNotFound
	case status == http.StatusBadRequest && strings.Contains(said, "Upgrading from non-versioned"): // for a moment after KV version 2 was enabled
		class = errdefs.ErrUnavailable
	case status == http.StatusInternalServerError && strings.Contains(said, "too large"): // its own storage (raft) has a limit of 1 MiB
		class = fmt.Errorf("raise max_entry_size of the server's storage: %w", errdefs.ErrFailedPrecondition)
	case status == http.StatusBadRequest && strings.Contains(said, "check-and-set"):
		return errdefs.ErrAlreadyExists
	case status == http.StatusForbidden || status == http.StatusUnauthorized:
		class = fmt.Errorf("check the token in token_file and its policy: %w", errdefs.ErrPermissionDenied)
	case status == http.StatusTooManyRequests || status >= http.StatusInternalServerError:
		class = errdefs.ErrUnavailable // also a sealed server (503)
	}
	return fmt.Errorf("vault answered with status %d %s: %w", status, said, class)
}
