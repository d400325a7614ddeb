package broker_test

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/owner/broker/admin"
	"github.com/coffer-project/coffer/owner/broker/audit"
	"github.com/coffer-project/coffer/owner/broker/brokertest"
	"github.com/coffer-project/coffer/owner/broker/client"
	"github.com/coffer-project/coffer/proto/kbs"
)

func TestAdminLife(t *testing.T) {
	for name, o := range map[string]brokertest.Options{"http": {}, "https": {TLS: true}} {
		t.Run(name, func(t *testing.T) {
			b := brokertest.Start(t, o)
			c := b.Admin(t)
			ctx := t.Context()
			one, err := kbs.ParseResourceURI(uri)
			if err != nil {
				t.Fatal(err)
			}
			for _, data := range [][]byte{[]byte("old"), secret} {
				if err := c.Put(ctx, one, data); err != nil {
					t.Fatal(err)
				}
			}
			if list, err := c.List(ctx); err != nil || len(list) != 1 || list[0] != one {
				t.Errorf("list %v, %v", list, err)
			}
			g := newGuest(t, b)
			g.handshake()
			if got := g.open(g.get(nil)); !bytes.Equal(got, secret) {
				t.Errorf("guest got %q", got)
			}
			if err := c.Delete(ctx, one); err != nil {
				t.Fatal(err)
			}
			if err := c.Delete(ctx, one); !errors.Is(err, errdefs.ErrNotFound) {
				t.Errorf("second delete: %v", err)
			}
			refused(t, g.get(nil), 404, kbs.KindNotFound)
			for _, r := range b.Audit() {
				if strings.Contains(r.Reason+string(r.Claims), string(secret)) {
					t.Errorf("audit log shows a resource: %+v", r)
				}
			}
		})
	}
}

func TestAdminRefuses(t *testing.T) {
	b := brokertest.Start(t, brokertest.Options{})
	g := newGuest(t, b)
	guestToken := g.handshake()
	_, stranger, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	good, err := admin.Sign(b.AdminKey, time.Now(), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := admin.Sign(stranger, time.Now(), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	expired, err := admin.Sign(b.AdminKey, time.Now().Add(-time.Hour), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	const path = kbs.PathResource + "/default/key/new"
	for name, tc := range map[string]struct {
		header string
		method string
		path   string
		body   string
		status int
		kind   string
	}{
		"no token":          {"", http.MethodPost, path, "x", 401, kbs.KindAdminAuth},
		"basic":             {"Basic eDp5", http.MethodPost, path, "x", 401, kbs.KindAdminAuth},
		"guest's token":     {"Bearer " + guestToken, http.MethodPost, path, "x", 401, kbs.KindAdminAuth},
		"stranger":          {"Bearer " + foreign, http.MethodPut, path, "x", 401, kbs.KindAdminAuth},
		"expired":           {"Bearer " + expired, http.MethodDelete, path, "", 401, kbs.KindAdminAuth},
		"list":              {"Bearer " + foreign, http.MethodGet, kbs.PathResource, "", 401, kbs.KindAdminAuth},
		"empty":             {"Bearer " + good, http.MethodPost, path, "", 400, kbs.KindPluginInternal},
		"oversize":          {"Bearer " + good, http.MethodPost, path, strings.Repeat("x", kbs.MaxResource+1), 413, kbs.KindPluginInternal},
		"path":              {"Bearer " + good, http.MethodPost, kbs.PathResource + "/default/key/.new", "x", 404, kbs.KindInvalidPath},
		"query":             {"Bearer " + good, http.MethodPost, path + "?a=b", "x", 404, kbs.KindInvalidPath},
		"admin as guest":    {"Bearer " + good, http.MethodGet, path, "", 401, kbs.KindTokenVerifier},
		"path without auth": {"", http.MethodPost, kbs.PathResource + "/default/key/.new", "x", 401, kbs.KindAdminAuth},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGuest(t, b)
			w := g.send(tc.method, tc.path, []byte(tc.body), func(r *http.Request) {
				if tc.header != "" {
					r.Header.Set("Authorization", tc.header)
				}
			})
			refused(t, w, tc.status, tc.kind)
		})
	}
	if list, err := b.Admin(t).List(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("something was stored: %v, %v", list, err)
	}
	denied := 0
	for _, r := range b.Audit() {
		if r.Event == audit.EventAdmin && r.Decision == audit.Refused {
			denied++
		}
	}
	if denied < 7 {
		t.Errorf("%d refusals on record", denied)
	}
}

func TestAdminClientErrors(t *testing.T) {
	b := brokertest.Start(t, brokertest.Options{})
	one, err := kbs.ParseResourceURI(uri)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.New(client.Options{URL: b.URL}); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("no key: %v", err)
	}
	if _, err := client.New(client.Options{URL: "kbs", Key: b.AdminKey}); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("no URL: %v", err)
	}
	if _, err := client.New(client.Options{URL: b.URL, Key: b.AdminKey, CACertPEM: []byte("x")}); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("CA for http: %v", err)
	}
	c := b.Admin(t)
	for name, data := range map[string][]byte{"empty": nil, "oversize": make([]byte, kbs.MaxResource+1)} {
		if err := c.Put(t.Context(), one, data); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, stranger, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	denied, err := client.New(client.Options{URL: b.URL, Key: stranger})
	if err != nil {
		t.Fatal(err)
	}
	if err := denied.Put(t.Context(), one, secret); !errors.Is(err, errdefs.ErrPermissionDenied) || strings.Contains(err.Error(), string(secret)) {
		t.Errorf("stranger: %v", err)
	}
	unknown, err := client.New(client.Options{URL: brokertest.Start(t, brokertest.Options{TLS: true}).URL, Key: stranger})
	if err != nil {
		t.Fatal(err)
	}
	if err := unknown.Put(t.Context(), one, secret); !errors.Is(err, errdefs.ErrUnavailable) || !strings.Contains(err.Error(), "--ca") {
		t.Errorf("unknown CA: %v", err)
	}
	down, err := client.New(client.Options{URL: "http://127.0.0.1:1", Key: stranger})
	if err != nil {
		t.Fatal(err)
	}
	if err := down.Put(t.Context(), one, secret); !errors.Is(err, errdefs.ErrUnavailable) || !strings.Contains(err.Error(), "127.0.0.1:1") {
		t.Errorf("down: %v", err)
	}
}
