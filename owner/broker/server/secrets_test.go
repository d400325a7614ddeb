package server

import (
	"bytes"
	"context"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/log"
	"github.com/sirupsen/logrus"

	"github.com/coffer-project/coffer/owner/broker/client"
	"github.com/coffer-project/coffer/owner/broker/keys"
	"github.com/coffer-project/coffer/proto/kbs"
)

// Neither log nor audit log, at the most talkative level and with a store that fails, hold a resource, a token or a key.
func TestLogsHoldNoSecrets(t *testing.T) {
	var out bytes.Buffer
	logger := logrus.New()
	logger.SetLevel(logrus.TraceLevel)
	logger.SetOutput(&out)
	ctx, cancel := context.WithCancel(log.WithLogger(t.Context(), logrus.NewEntry(logger)))
	defer cancel()
	c, private := configured(t)
	s, err := New(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	key, err := keys.ParseAdminPrivate(private)
	if err != nil {
		t.Fatal(err)
	}
	admin, err := client.New(client.Options{URL: s.URL(), Key: key})
	if err != nil {
		t.Fatal(err)
	}
	if err := admin.Put(t.Context(), one, []byte("topsecret")); err != nil {
		t.Fatal(err)
	}
	// A folder in a policy's place makes the broker say what went wrong.
	if err := os.MkdirAll(filepath.Join(c.Store.Path, "policy/resource/resource-policy"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := admin.Status(t.Context()); err == nil {
		t.Error("a policy that cannot be read was no fault")
	}
	for _, header := range []string{"Bearer topsecret", "Basic topsecret"} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL()+kbs.PathResource+"/a/b/c", strings.NewReader("topsecret"))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", header)
		r.AddCookie(&http.Cookie{Name: kbs.SessionCookie, Value: "topsecret"})
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	audited, err := os.ReadFile(c.Audit.File)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"log": out.String(), "audit log": string(audited)} {
		if !strings.Contains(text, "time") {
			t.Errorf("the %s is empty", name)
		}
		for _, secret := range []string{"topsecret", "eyJ", "PRIVATE KEY"} {
			if strings.Contains(text, secret) {
				t.Errorf("the %s holds %q:\n%s", name, secret, text)
			}
		}
	}
	if !strings.Contains(out.String(), "request failed") {
		t.Errorf("the failing store is not in the log:\n%s", out.String())
	}
}
