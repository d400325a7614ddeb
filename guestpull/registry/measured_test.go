package registry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	hostconfig "github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/integration/registrytest"
	"github.com/coffer-project/coffer/integration/testcert"
	"github.com/coffer-project/coffer/proto/initdata"
)

// measured makes a client from a document whose broker has resources.
func measured(t *testing.T, data map[string]string, resources map[string]string) (*Client, error) {
	t.Helper()
	cdh, err := initdata.ParseCDH(data[initdata.KeyCDH])
	if err != nil {
		t.Fatal(err)
	}
	config, err := FromMeasured(&initdata.Document{Data: data}, &cdh.Image, func(_ context.Context, uri string) ([]byte, error) {
		text, ok := resources[uri]
		if !ok {
			return nil, fmt.Errorf("broker has no %s: %w", uri, errdefs.ErrNotFound)
		}
		return []byte(text), nil
	})
	if err != nil {
		return nil, err
	}
	config.Attempts, config.IdleTimeout = 2, testIdle
	return New(config)
}

// TestMeasuredSilence: the document says how long a registry may be silent.
func TestMeasuredSilence(t *testing.T) {
	for text, want := range map[string]time.Duration{"": defaultIdleTimeout, "[image]\nimage_pull_progress_timeout = \"2m\"": 2 * time.Minute} {
		cdh, err := initdata.ParseCDH(text)
		if err != nil {
			t.Fatal(err)
		}
		config, err := FromMeasured(nil, &cdh.Image, nil)
		if err != nil {
			t.Fatal(err)
		}
		c, err := New(config)
		if err != nil {
			t.Fatal(err)
		}
		if got := c.whole.sites[nil].http.Transport.(*transport).idle; got != want {
			t.Errorf("%q: silent for %s, want %s", text, got, want)
		}
	}
}

// TestHostsLikeContainerd holds the places that a hosts.toml names against those that containerd would ask.
func TestHostsLikeContainerd(t *testing.T) {
	cases := map[string]struct{ registry, text string }{
		"mirror first":   {"docker.io", "server = \"https://docker.io\"\n[host.\"https://mirror.example\"]\ncapabilities = [\"pull\"]\n"},
		"order":          {"r.example", "[host.\"https://z.example\"]\n[host.\"https://z.example\".header]\nx-a = \"b\"\n[host.\"https://a.example\"]\n[host.\"http://m.example:5000\"]\n"},
		"no server":      {"r.example:5000", "[host.\"https://mirror.example/hub\"]\n"},
		"other server":   {"r.example", "server = \"https://upstream.example\"\n"},
		"path":           {"r.example", "server = \"https://upstream.example/v2/\"\n[host.\"mirror.example/a/v2\"]\n[host.\"https://b.example/x/\"]\n"},
		"override_path":  {"r.example", "[host.\"https://mirror.example/v2/proxy\"]\noverride_path = true\ncapabilities = [\"pull\", \"resolve\"]\n"},
		"only resolve":   {"r.example", "capabilities = [\"resolve\"]\n[host.\"https://c.example\"]\ncapabilities = [\"Pull\", \"push\"]\n[host.\"https://c.example\".header]\nx-one = [\"1\", \"2\"]\n"},
		"nothing at all": {"r.example", "capabilities = [\"pull\"]"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(tc.text), 0o600); err != nil {
				t.Fatal(err)
			}
			theirs, err := hostconfig.ConfigureHosts(t.Context(), hostconfig.HostOptions{HostDir: func(string) (string, error) { return dir, nil }})(tc.registry)
			if err != nil {
				t.Fatal(err)
			}
			var want []string
			keyOne, keyA := "x-one", "x-a" // containerd keeps them as they are written
			for _, h := range theirs {
				want = append(want, fmt.Sprintf("%s://%s%s/app pull %t resolve %t x-one %q x-a %q", h.Scheme, h.Host, h.Path,
					h.Capabilities.Has(docker.HostCapabilityPull), h.Capabilities.Has(docker.HostCapabilityResolve), h.Header[keyOne], h.Header[keyA]))
			}
			c, err := measured(t, map[string]string{initdata.HostsKey(tc.registry): tc.text}, nil)
			if err != nil {
				t.Fatal(err)
			}
			ours, err := c.endpoints(t.Context(), tc.registry+"/app:1")
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, ep := range ours {
				address, _, _ := strings.Cut(strings.TrimSuffix(ep.url("", ""), "/"), "?")
				got = append(got, fmt.Sprintf("%s pull %t resolve %t x-one %q x-a %q", address, !ep.noPull, !ep.noTags, ep.header()["X-One"], ep.header()["X-A"]))
			}
			if !slices.Equal(got, want) {
				t.Errorf("got  %s\nwant %s", strings.Join(got, "\n     "), strings.Join(want, "\n     "))
			}
		})
	}
}

// TestHostsMirror: a mirror of everything is told whose image is meant, gets its own header, and gives no tags.
func TestHostsMirror(t *testing.T) {
	origin := registrytest.Start(t)
	ref, img := put(origin, 1<<10)
	var seen []string
	mirror, addr := front(t, func(w http.ResponseWriter, r *http.Request, honest http.Handler) {
		seen = append(seen, r.Method+" "+r.URL.Path+" "+r.URL.Query().Get("ns")+" "+r.Header.Get("X-Team"))
		r.URL.Path = strings.Replace(r.URL.Path, "/hub/", "/v2/", 1)
		honest.ServeHTTP(w, r)
	})
	put(mirror, 1<<10)
	c, err := measured(t, map[string]string{"hosts._default.toml": fmt.Sprintf(
		"server = \"http://%s\"\n[host.\"http://%s/hub\"]\ncapabilities = [\"pull\"]\noverride_path = true\n[host.\"http://%s/hub\".header]\nx-team = \"blue\"\n",
		origin.Addr(), addr, addr)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	d, err := c.Resolve(t.Context(), ref)
	if err != nil || d != img.Desc.Digest || len(seen) != 0 {
		t.Fatalf("resolved %s, %v; mirror saw %q", d, err, seen)
	}
	if _, err := readBlob(t.Context(), c, ref, img); err != nil {
		t.Fatal(err)
	}
	want := "GET /hub/app/blobs/" + img.Layers[0].Desc.Digest.String() + " " + origin.Addr() + " blue"
	if !slices.Equal(seen, []string{want}) || origin.Count(registrytest.LayerBlob, "") != 0 {
		t.Errorf("mirror saw %q, want %q", seen, want)
	}
}

// TestClientCertificate: the key comes from the broker, the authorities from the document.
func TestClientCertificate(t *testing.T) {
	authority, err := testcert.New("test authority")
	if err != nil {
		t.Fatal(err)
	}
	cert, err := authority.Issue("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	certPEM := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]}))
	keyPEM := string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}))
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(authority.PEM)
	r := registrytest.New()
	s := httptest.NewUnstartedServer(r)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAnyClientCert, ClientCAs: pool, MinVersion: tls.VersionTLS12}
	s.StartTLS()
	t.Cleanup(s.Close)
	_, img := put(r, 10)
	addr := strings.TrimPrefix(s.URL, "https://")

	data := map[string]string{
		initdata.HostsKey(addr): "ca = \"corp.crt\"\nclient = [[\"guest.crt\", \"kbs:///default/registry/key\"]]\n",
		"corp.crt":              string(authority.PEM), "guest.crt": certPEM,
	}
	c, err := measured(t, data, map[string]string{"kbs:///default/registry/key": keyPEM})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := readBlob(t.Context(), c, addr+"/app:1", img); err != nil {
		t.Error(err)
	}
	c, err = measured(t, data, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := readBlob(t.Context(), c, addr+"/app:1", img); !errors.Is(err, errdefs.ErrNotFound) || !strings.Contains(err.Error(), "kbs:///default/registry/key") {
		t.Errorf("without the key: %v", err)
	}
	c, err = measured(t, map[string]string{initdata.HostsKey(addr): "ca = \"corp.crt\"", "corp.crt": string(authority.PEM)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := readBlob(t.Context(), c, addr+"/app:1", img); !errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("without a certificate: %v", err)
	}
}

func TestSettingsFromTheBroker(t *testing.T) {
	r := registrytest.Start(t)
	r.RequireLogin("me", "secret")
	_, img := put(r, 10)
	const cdh = "[image]\nauthenticated_registry_credentials_uri = \"kbs:///default/registry/auth\"\nregistry_configuration_uri = \"kbs:///default/registry/config\"\n"
	resources := map[string]string{
		"kbs:///default/registry/auth":   `{"auths":{"` + r.Addr() + `/app":{"auth":"bWU6c2VjcmV0"}}}`,
		"kbs:///default/registry/config": "[[registry]]\nprefix = \"nice.example\"\nlocation = \"" + r.Addr() + "\"\ninsecure = true\n",
	}
	c, err := measured(t, map[string]string{initdata.KeyCDH: cdh}, resources)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := readBlob(t.Context(), c, "nice.example/app:1", img); err != nil {
		t.Error(err)
	}
	for _, missing := range []string{"kbs:///default/registry/auth", "kbs:///default/registry/config"} {
		rest := map[string]string{}
		for uri, text := range resources {
			if uri != missing {
				rest[uri] = text
			}
		}
		c, err := measured(t, map[string]string{initdata.KeyCDH: cdh}, rest)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := readBlob(t.Context(), c, "nice.example/app:1", img); !errors.Is(err, errdefs.ErrNotFound) || !strings.Contains(err.Error(), missing) {
			t.Errorf("without %s: %v", missing, err)
		}
	}
	// The document itself may hold what is no secret.
	c, err = measured(t, map[string]string{
		initdata.KeyAuth: `{"auths":{"` + r.Addr() + `":{"auth":"bWU6c2VjcmV0"}}}`,
		initdata.KeyCDH:  "[[image.registry_config.registry]]\nlocation = \"" + r.Addr() + "\"\ninsecure = true\n",
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := readBlob(t.Context(), c, r.Addr()+"/app:1", img); err != nil {
		t.Error(err)
	}
}

// TestProxy: the proxy of the document is used, the environment's is not, and exceptions hold.
func TestProxy(t *testing.T) {
	r := registrytest.New()
	asked := 0
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if asked++; req.URL.Host != "registry.example" || req.Header.Get("Proxy-Authorization") == "" {
			t.Errorf("proxy was asked for %s", req.URL)
		}
		r.ServeHTTP(w, req)
	}))
	t.Cleanup(proxy.Close)
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1")
	_, img := put(r, 10)
	text := func(noProxy string) string {
		return fmt.Sprintf("[image.image_pull_proxy]\nhttp_proxy = \"http://user:secret@%s\"\nno_proxy = %q\n[[image.registry_config.registry]]\nlocation = \"registry.example\"\ninsecure = true\n",
			strings.TrimPrefix(proxy.URL, "http://"), noProxy)
	}
	c, err := measured(t, map[string]string{initdata.KeyCDH: text("")}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := readBlob(t.Context(), c, "registry.example/app:1", img); err != nil || asked != 1 {
		t.Errorf("%v, proxy was asked %d times", err, asked)
	}
	c, err = measured(t, map[string]string{initdata.KeyCDH: text(".example,10.0.0.0/8")}, nil)
	if err != nil {
		t.Fatal(err)
	}
	_, err = readBlob(t.Context(), c, "registry.example/app:1", img)
	if !errors.Is(err, errdefs.ErrUnavailable) || asked != 1 || strings.Contains(err.Error(), "secret") {
		t.Errorf("%v, proxy was asked %d times", err, asked)
	}
	proxy.Close()
	c, err = measured(t, map[string]string{initdata.KeyCDH: text("")}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err = readBlob(t.Context(), c, "registry.example/app:1", img); !errors.Is(err, errdefs.ErrUnavailable) || !strings.Contains(err.Error(), "proxy") || strings.Contains(err.Error(), "secret") {
		t.Errorf("proxy is away: %v", err)
	}
}
