package registry

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/sirupsen/logrus"

	"github.com/coffer-project/coffer/integration/registrytest"
)

const testIdle = 300 * time.Millisecond

func newClient(t *testing.T, r *registrytest.Registry, edit func(*Config)) *Client {
	t.Helper()
	config := Config{ExtraRoots: r.CA(), IdleTimeout: testIdle, Attempts: 2}
	if r.CA() == nil {
		config.Registries = []Registry{{Prefix: r.Addr(), PlainHTTP: true}}
	}
	if edit != nil {
		edit(&config)
	}
	c, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// put fills a registry with an image of one plain layer of size bytes.
func put(r *registrytest.Registry, size int) (string, *registrytest.Image) {
	body := make([]byte, size)
	for i := range body {
		body[i] = byte(i * 7 >> 3)
	}
	img := registrytest.NewImage([]registrytest.Layer{registrytest.NewLayer(registrytest.Plain, registrytest.Entry{Name: "f", Body: string(body)})}, nil, nil)
	return r.Put("app", "1", img), img
}

func readBlob(ctx context.Context, c *Client, ref string, img *registrytest.Image) ([]byte, error) {
	rc, err := c.Blob(ctx, ref, img.Layers[0].Desc, nil)
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	return io.ReadAll(rc)
}

func TestHonest(t *testing.T) {
	for name, start := range map[string]func(registrytest.T) *registrytest.Registry{"http": registrytest.Start, "https": registrytest.StartTLS} {
		t.Run(name, func(t *testing.T) {
			r := start(t)
			ref, img := put(r, 1<<20)
			c := newClient(t, r, nil)
			d, err := c.Resolve(t.Context(), ref)
			if err != nil || d != img.Desc.Digest {
				t.Fatalf("resolved %s, %v", d, err)
			}
			raw, err := c.Manifest(t.Context(), ref, d, 1<<20)
			if err != nil || !bytes.Equal(raw, img.Raw) {
				t.Fatalf("manifest: %v", err)
			}
			blob, err := readBlob(t.Context(), c, ref, img)
			if err != nil || !bytes.Equal(blob, img.Layers[0].Blob) {
				t.Fatalf("blob: %v", err)
			}
			if n := r.Count(registrytest.LayerBlob, "GET"); n != 1 {
				t.Errorf("layer was asked for %d times", n)
			}
			if n := r.Count(registrytest.Manifest, "GET"); n != 1 {
				t.Errorf("manifest was asked for %d times", n)
			}
		})
	}
}

func TestBlobFaults(t *testing.T) {
	cases := map[string]struct {
		fault   registrytest.Fault
		wantErr error // nil: the fault is overcome
		text    string
	}{
		"wrong blob":           {registrytest.Fault{Action: registrytest.WrongBlob}, errdefs.ErrFailedPrecondition, "do not match digest"},
		"flipped byte":         {registrytest.Fault{Action: registrytest.FlipByte}, errdefs.ErrFailedPrecondition, "do not match digest"},
		"endless body is cut":  {registrytest.Fault{Action: registrytest.Endless}, nil, ""},
		"short for ever":       {registrytest.Fault{Action: registrytest.Short}, errdefs.ErrFailedPrecondition, "shorter than the image"},
		"truncated once":       {registrytest.Fault{Action: registrytest.Truncate, Times: 1}, nil, ""},
		"truncated for ever":   {registrytest.Fault{Action: registrytest.Truncate}, errdefs.ErrUnavailable, "of 1050112 bytes, and again after 4 attempts"},
		"truncated thrice":     {registrytest.Fault{Action: registrytest.Truncate, Times: 3}, nil, ""},
		"stalled":              {registrytest.Fault{Action: registrytest.Stall}, errdefs.ErrUnavailable, "sent nothing for 300ms"},
		"silent":               {registrytest.Fault{Action: registrytest.Silent}, errdefs.ErrUnavailable, "cannot be reached (2 attempts)"},
		"redirects in circles": {registrytest.Fault{Action: registrytest.Redirect}, errdefs.ErrFailedPrecondition, "redirects more than"},
		"encoded":              {registrytest.Fault{Action: registrytest.Encoded}, errdefs.ErrFailedPrecondition, "in encoding"},
		"404":                  {registrytest.Fault{Action: registrytest.Status, Status: 404}, errdefs.ErrNotFound, "answered 404 Not Found"},
		"403":                  {registrytest.Fault{Action: registrytest.Status, Status: 403}, errdefs.ErrPermissionDenied, `"INJECTED" "injected fault"`},
		"401":                  {registrytest.Fault{Action: registrytest.Status, Status: 401}, errdefs.ErrUnauthenticated, "wants credentials for"},
		"500 for ever":         {registrytest.Fault{Action: registrytest.Status, Status: 500}, errdefs.ErrUnavailable, "(2 attempts)"},
		"503 once":             {registrytest.Fault{Action: registrytest.Status, Status: 503, Times: 1}, nil, ""},
		"429 once":             {registrytest.Fault{Action: registrytest.Status, Status: 429, Times: 1, RetryAfter: time.Second}, nil, ""},
		"429 for ever":         {registrytest.Fault{Action: registrytest.Status, Status: 429}, errdefs.ErrUnavailable, "429"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := registrytest.Start(t)
			ref, img := put(r, 1<<20)
			tc.fault.Kind = registrytest.LayerBlob
			r.Inject(tc.fault)
			blob, err := readBlob(t.Context(), newClient(t, r, nil), ref, img)
			if tc.wantErr == nil {
				if err != nil || !bytes.Equal(blob, img.Layers[0].Blob) {
					t.Fatalf("got %d bytes, %v", len(blob), err)
				}
				return
			}
			if !errors.Is(err, tc.wantErr) || !strings.Contains(err.Error(), tc.text) {
				t.Fatalf("got %v; want %v with %q", err, tc.wantErr, tc.text)
			}
			if len(blob) > len(img.Layers[0].Blob) {
				t.Errorf("read %d bytes of a blob of %d", len(blob), len(img.Layers[0].Blob))
			}
			if n := len(r.Requests()); n > 16 {
				t.Errorf("client made %d requests", n)
			}
		})
	}
}

// Waiting costs the idle time-out for each attempt, so a silent registry gets fewer of them than one that refuses.
func TestFewAttemptsAtSilence(t *testing.T) {
	r := registrytest.Start(t)
	ref, img := put(r, 1<<10)
	r.Inject(registrytest.Fault{Kind: registrytest.LayerBlob, Action: registrytest.Silent})
	_, err := readBlob(t.Context(), newClient(t, r, func(c *Config) { c.Attempts, c.IdleTimeout = 5, 50*time.Millisecond }), ref, img)
	if !errors.Is(err, errdefs.ErrUnavailable) || !strings.Contains(err.Error(), "(2 attempts)") {
		t.Errorf("got %v", err)
	}
}

func TestResumeWithoutRanges(t *testing.T) {
	r := registrytest.Start(t)
	ref, img := put(r, 1<<20)
	r.Inject(registrytest.Fault{Kind: registrytest.LayerBlob, Action: registrytest.Truncate, Times: 1})
	r.Inject(registrytest.Fault{Kind: registrytest.LayerBlob, Action: registrytest.NoRange})
	blob, err := readBlob(t.Context(), newClient(t, r, nil), ref, img)
	if err != nil || !bytes.Equal(blob, img.Layers[0].Blob) {
		t.Fatalf("got %d bytes, %v", len(blob), err)
	}
}

func TestManifestFaults(t *testing.T) {
	cases := map[string]struct {
		fault   registrytest.Fault
		limit   int64
		wantErr error
	}{
		"flipped byte":   {fault: registrytest.Fault{Action: registrytest.FlipByte}, wantErr: errdefs.ErrFailedPrecondition},
		"endless":        {fault: registrytest.Fault{Action: registrytest.Endless}, wantErr: errdefs.ErrFailedPrecondition},
		"over the limit": {fault: registrytest.Fault{Kind: registrytest.Config, Action: registrytest.Short}, limit: 10, wantErr: errdefs.ErrFailedPrecondition},
		"missing":        {fault: registrytest.Fault{Action: registrytest.Status, Status: 404}, wantErr: errdefs.ErrNotFound},
		"stalled":        {fault: registrytest.Fault{Action: registrytest.Stall}, wantErr: errdefs.ErrUnavailable},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := registrytest.Start(t)
			ref, img := put(r, 10)
			if tc.fault.Kind == "" {
				tc.fault.Kind = registrytest.Manifest
			}
			if tc.limit == 0 {
				tc.limit = 64 << 10
			}
			r.Inject(tc.fault)
			_, err := newClient(t, r, nil).Manifest(t.Context(), ref, img.Desc.Digest, tc.limit)
			if !errors.Is(err, tc.wantErr) {
				t.Fatalf("got %v, want %v", err, tc.wantErr)
			}
		})
	}
}

func TestMirrorFailOver(t *testing.T) {
	good, bad := registrytest.Start(t), registrytest.Start(t)
	ref, img := put(good, 1<<20)
	put(bad, 1<<20)
	withMirror := func(c *Config) {
		c.Registries = []Registry{{Prefix: good.Addr(), PlainHTTP: true, Mirrors: []Mirror{{Location: bad.Addr(), PlainHTTP: true}}}}
	}
	cases := map[string]registrytest.Fault{
		"mirror refuses":        {Action: registrytest.Status, Status: 404},
		"mirror breaks":         {Action: registrytest.Status, Status: 500},
		"mirror lies":           {Kind: registrytest.Manifest, Action: registrytest.FlipByte},
		"mirror breaks halfway": {Kind: registrytest.LayerBlob, Action: registrytest.Status, Status: 503},
	}
	for name, fault := range cases {
		t.Run(name, func(t *testing.T) {
			bad.Heal()
			bad.Inject(fault)
			c := newClient(t, good, withMirror)
			if _, err := c.Manifest(t.Context(), ref, img.Desc.Digest, 1<<20); err != nil {
				t.Fatal(err)
			}
			if blob, err := readBlob(t.Context(), c, ref, img); err != nil || len(blob) != len(img.Layers[0].Blob) {
				t.Fatalf("got %d bytes, %v", len(blob), err)
			}
		})
	}
}

func TestLogin(t *testing.T) {
	r := registrytest.StartTLS(t)
	r.RequireLogin("me", "secret")
	ref, img := put(r, 10)
	_, err := readBlob(t.Context(), newClient(t, r, nil), ref, img)
	if !errors.Is(err, errdefs.ErrUnauthenticated) {
		t.Errorf("without credentials: %v", err)
	}
	c := newClient(t, r, func(c *Config) {
		c.Credentials = func(context.Context, string) (Credential, error) {
			return Credential{User: "me", Password: "secret"}, nil
		}
	})
	if _, err := readBlob(t.Context(), c, ref, img); err != nil {
		t.Errorf("with credentials: %v", err)
	}
	c = newClient(t, r, func(c *Config) {
		c.Credentials = func(context.Context, string) (Credential, error) {
			return Credential{User: "me", Password: "wrong"}, nil
		}
	})
	_, err = readBlob(t.Context(), c, ref, img)
	if !errors.Is(err, errdefs.ErrUnauthenticated) || strings.Contains(err.Error(), "wrong") {
		t.Errorf("with wrong credentials: %v", err)
	}
}

// TestNothingOfARequestIsLogged: headers and URLs may hold credentials, whatever the log level.
func TestNothingOfARequestIsLogged(t *testing.T) {
	var printed bytes.Buffer
	logger := logrus.New()
	logger.SetOutput(&printed)
	logger.SetLevel(logrus.TraceLevel)
	ctx := log.WithLogger(t.Context(), logrus.NewEntry(logger))

	r := registrytest.Start(t)
	ref, img := put(r, 1000)
	r.RequireLogin("user", "secret")
	c := newClient(t, r, func(c *Config) {
		c.Credentials = func(context.Context, string) (Credential, error) {
			return Credential{User: "user", Password: "secret"}, nil
		}
	})
	if _, err := c.Resolve(ctx, ref); err != nil {
		t.Fatal(err)
	}
	if _, err := readBlob(ctx, c, ref, img); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Resolve(ctx, r.Ref("app", "missing")); err == nil {
		t.Error("a missing image was resolved")
	}
	if strings.Contains(printed.String(), "http") || strings.Contains(printed.String(), "header") {
		t.Errorf("logged: %s", printed.String())
	}
}

func TestConnectionFaults(t *testing.T) {
	secure, open := registrytest.StartTLS(t), registrytest.Start(t)
	secureRef, img := put(secure, 10)
	openRef, _ := put(open, 10)
	gone := registrytest.Start(t)
	goneRef, _ := put(gone, 10)
	gone.Close()
	cases := map[string]struct {
		ref     string
		config  Config
		wantErr error
		text    string
	}{
		"unknown authority":   {secureRef, Config{}, errdefs.ErrFailedPrecondition, "certificate is not trusted"},
		"http, not https":     {openRef, Config{}, errdefs.ErrFailedPrecondition, "speaks http"},
		"nobody listens":      {goneRef, Config{Registries: []Registry{{Prefix: gone.Addr(), PlainHTTP: true}}}, errdefs.ErrUnavailable, "cannot be reached"},
		"blocked":             {openRef, Config{Registries: []Registry{{Prefix: open.Addr(), Blocked: true}}}, errdefs.ErrPermissionDenied, "is blocked"},
		"no host in name":     {"busybox:1", Config{}, errdefs.ErrInvalidArgument, ""},
		"path out of the API": {open.Addr() + "/../../etc:1", Config{}, errdefs.ErrInvalidArgument, "invalid reference"},
		"upper case":          {open.Addr() + "/App:1", Config{}, errdefs.ErrInvalidArgument, "malformed"},
		"short digest":        {open.Addr() + "/app@sha256:00", Config{}, errdefs.ErrInvalidArgument, "malformed"},
		"user in host":        {"user:secret@" + open.Addr() + "/app:1", Config{}, errdefs.ErrInvalidArgument, ""},
		"no tag":              {open.Addr() + "/app", Config{}, errdefs.ErrInvalidArgument, "neither tag nor digest"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tc.config.Attempts, tc.config.IdleTimeout = 2, testIdle
			c, err := New(tc.config)
			if err != nil {
				t.Fatal(err)
			}
			_, err = readBlob(t.Context(), c, tc.ref, img)
			if !errors.Is(err, tc.wantErr) || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("blob: got %v; want %v with %q", err, tc.wantErr, tc.text)
			}
			_, err = c.Resolve(t.Context(), tc.ref)
			if !errors.Is(err, tc.wantErr) || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("resolve: got %v; want %v with %q", err, tc.wantErr, tc.text)
			}
		})
	}
}

func TestCancelDuringStall(t *testing.T) {
	r := registrytest.Start(t)
	ref, img := put(r, 1<<20)
	r.Inject(registrytest.Fault{Kind: registrytest.LayerBlob, Action: registrytest.Stall})
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := readBlob(ctx, newClient(t, r, func(c *Config) { c.IdleTimeout = time.Minute }), ref, img)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %v", err)
	}
}

func TestEndpoints(t *testing.T) {
	config := Config{Registries: []Registry{
		{Prefix: "docker.io", Mirrors: []Mirror{{Location: "mirror.local:5000/hub", PlainHTTP: true}}},
		{Prefix: "docker.io/private", Location: "own.local/stuff"},
		{Prefix: "*.corp", PlainHTTP: true},
		{Prefix: "old.local", Location: "new.local"},
	}}
	cases := map[string][]string{
		"docker.io/library/busybox:1":                   {"http://mirror.local:5000/hub/library/busybox:1", "https://registry-1.docker.io|docker.io/library/busybox:1"},
		"docker.io/private/app:1":                       {"https://own.local/stuff/app:1"},
		"docker.io/privateer/app:1":                     {"http://mirror.local:5000/hub/privateer/app:1", "https://registry-1.docker.io|docker.io/privateer/app:1"},
		"a.b.corp/x:1":                                  {"http://a.b.corp/x:1"},
		"old.local/x@sha256:" + strings.Repeat("0", 64): {"https://new.local/x@sha256:" + strings.Repeat("0", 64)},
		"other.example/x:1":                             {"https://other.example/x:1"},
	}
	for ref, want := range cases {
		t.Run(ref, func(t *testing.T) {
			list, err := config.endpoints(ref)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, ep := range list {
				text := ep.scheme() + "://" + ep.ref.String()
				if ep.host != ep.ref.Hostname() {
					text = ep.scheme() + "://" + ep.host + "|" + ep.ref.String()
				}
				got = append(got, text)
			}
			if strings.Join(got, " ") != strings.Join(want, " ") {
				t.Errorf("got %q, want %q", got, want)
			}
		})
	}
}

func TestConfigFaults(t *testing.T) {
	_, err := New(Config{Registries: []Registry{{}, {Prefix: "a", Mirrors: []Mirror{{}}}}, Attempts: -1})
	if !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Fatalf("got %v", err)
	}
	for _, part := range []string{"no prefix", "no location", "negative"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q is not in %v", part, err)
		}
	}
	if _, err := New(Config{ExtraRoots: []byte("nonsense")}); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("bad roots: %v", err)
	}
}

func FuzzReference(f *testing.F) {
	f.Add("docker.io/library/busybox:1")
	f.Add("a.b:5000/x@sha256:" + strings.Repeat("0", 64))
	f.Add("localhost/../../etc:1")
	config := Config{Registries: []Registry{{Prefix: "docker.io", Location: "m.local/hub"}, {Prefix: "*.corp"}}}
	f.Fuzz(func(t *testing.T, ref string) {
		list, err := config.endpoints(ref)
		if err != nil {
			return
		}
		for _, ep := range list {
			if ep.host == "" || ep.ref.Object == "" {
				t.Errorf("%q gave endpoint %+v", ref, ep)
			}
		}
	})
}
