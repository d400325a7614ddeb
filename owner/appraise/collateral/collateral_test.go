package collateral

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
)

const address = "https://kdsintf.amd.com/vcek/v1/Milan/crl?x=1"

// network answers requests as a test says.
type network func(*http.Request) (*http.Response, error)

func (n network) RoundTrip(r *http.Request) (*http.Response, error) { return n(r) }

func answer(status int, body string) *http.Response {
	return &http.Response{
		StatusCode: status, Status: http.StatusText(status),
		Header: http.Header{"Issuer-Chain": {"chain"}},
		Body:   io.NopCloser(strings.NewReader(body)),
	}
}

func TestFilesOnly(t *testing.T) {
	dir := t.TempDir()
	s := &Store{Dir: dir}
	_, err := s.Get(t.Context(), address)
	if !errors.Is(err, errdefs.ErrNotFound) || !strings.Contains(err.Error(), "kdsintf.amd.com/vcek/v1/Milan/crl?x=1") {
		t.Fatalf("got %v", err)
	}
	name := filepath.Join(dir, "kdsintf.amd.com/vcek/v1/Milan/crl?x=1")
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	for file, text := range map[string]string{name: "body", name + ".header": "HTTP/2 200 \r\nissuer-chain: a%20b\r\n\r\n"} {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	piece, err := s.Get(t.Context(), address)
	if err != nil || string(piece.Body) != "body" || piece.Header.Get("Issuer-Chain") != "a%20b" {
		t.Errorf("got %+v, %v", piece, err)
	}
	if err := os.Truncate(name, MaxSize+1); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(t.Context(), address); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("large file: %v", err)
	}
	if _, err := (&Store{}).Get(t.Context(), address); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("no directory: %v", err)
	}
}

func TestNetworkIsAskedOnceAndFillsTheFiles(t *testing.T) {
	dir, now, asked := filepath.Join(t.TempDir(), "new"), time.Now(), 0
	down := false
	s := &Store{Dir: dir, Now: func() time.Time { return now }, Client: &http.Client{Transport: network(func(*http.Request) (*http.Response, error) {
		asked++
		if down {
			return nil, errors.New("no route")
		}
		return answer(http.StatusOK, "body"), nil
	})}}
	get := func(wantAsked int) {
		t.Helper()
		piece, err := s.Get(t.Context(), address)
		if err != nil || string(piece.Body) != "body" || piece.Header.Get("Issuer-Chain") != "chain" || asked != wantAsked {
			t.Fatalf("got %+v, %v after %d questions, want %d", piece, err, asked, wantAsked)
		}
	}
	get(1)
	get(1)
	now = now.Add(DefaultMaxAge + time.Hour)
	get(2)
	now, down = now.Add(2*DefaultMaxAge), true
	get(3) // the old file serves
	s = &Store{Dir: dir}
	get(3) // and serves without a network
}

// Many guests at once are one question, and each gets the answer.
func TestQuestionsAreShared(t *testing.T) {
	const guests = 8
	var asked atomic.Int32
	release := make(chan struct{})
	s := &Store{Dir: t.TempDir(), Client: &http.Client{Transport: network(func(*http.Request) (*http.Response, error) {
		asked.Add(1)
		<-release
		return answer(http.StatusOK, "body"), nil
	})}}
	synctest.Test(t, func(t *testing.T) {
		release = make(chan struct{})
		failed := make(chan error, guests)
		for range guests {
			go func() {
				piece, err := s.Get(context.Background(), address)
				if err == nil && string(piece.Body) != "body" {
					err = errors.New("wrong body")
				}
				failed <- err
			}()
		}
		synctest.Wait() // one asks, the others wait for it
		close(release)
		for range guests {
			if err := <-failed; err != nil {
				t.Error(err)
			}
		}
	})
	if n := asked.Load(); n != 1 {
		t.Errorf("asked %d times", n)
	}
}

func TestFaultsOfTheNetwork(t *testing.T) {
	for name, reply := range map[string]network{
		"down":      func(*http.Request) (*http.Response, error) { return nil, errors.New("no route") },
		"not found": func(*http.Request) (*http.Response, error) { return answer(http.StatusNotFound, ""), nil },
		"too large": func(*http.Request) (*http.Response, error) {
			return answer(http.StatusOK, strings.Repeat("x", MaxSize+1)), nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := &Store{Dir: dir, Client: &http.Client{Transport: reply}}
			if _, err := s.Get(t.Context(), address); !errors.Is(err, errdefs.ErrUnavailable) {
				t.Errorf("got %v", err)
			}
			if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
				t.Errorf("left %v, %v", entries, err)
			}
		})
	}
}

func TestAddressesRefused(t *testing.T) {
	s := &Store{Dir: t.TempDir(), Client: &http.Client{Transport: network(func(r *http.Request) (*http.Response, error) {
		t.Errorf("asked %s", r.URL)
		return nil, errors.New("no")
	})}}
	for name, address := range map[string]string{
		"other host": "https://example.com/crl",
		"http":       "http://kdsintf.amd.com/crl",
		"user":       "https://u@kdsintf.amd.com/crl",
		"port":       "https://kdsintf.amd.com:8443/crl",
		"climbs":     "https://kdsintf.amd.com/../../etc/passwd",
		"escapes":    "https://kdsintf.amd.com/%2e%2e/x",
		"odd query":  "https://kdsintf.amd.com/x?a=%00",
		"no URL":     "::",
	} {
		if _, err := s.Get(t.Context(), address); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}
