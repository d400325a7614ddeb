package keys

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
)

func TestAdminPair(t *testing.T) {
	private, public, err := NewAdmin()
	if err != nil {
		t.Fatal(err)
	}
	key, err := ParseAdminPrivate(private)
	if err != nil {
		t.Fatal(err)
	}
	if half, err := ParseAdminPublic(public); err != nil || !half.Equal(key.Public()) {
		t.Errorf("halves do not fit: %v", err)
	}
}

func TestParseRefuses(t *testing.T) {
	private, public, err := NewAdmin()
	if err != nil {
		t.Fatal(err)
	}
	token, err := NewToken()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ParseToken(token); err != nil {
		t.Fatal(err)
	}
	for name, err := range map[string]error{
		"admin from token key":   last(ParseAdminPrivate(token)),
		"admin from public":      last(ParseAdminPrivate(public)),
		"admin from nothing":     last(ParseAdminPrivate(nil)),
		"public from private":    last(ParseAdminPublic(private)),
		"public from nothing":    last(ParseAdminPublic([]byte("x"))),
		"token from admin key":   last(ParseToken(private)),
		"certificate from key":   last(ParseChain(token)),
		"certificate from noise": last(ParseChain([]byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"))),
	} {
		if !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func last[T any](_ T, err error) error { return err }

func TestWriteNew(t *testing.T) {
	name := filepath.Join(t.TempDir(), "key")
	if err := WriteNew(name, []byte("a"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := WriteNew(name, []byte("b"), 0o600); !errors.Is(err, errdefs.ErrAlreadyExists) {
		t.Errorf("second write: %v", err)
	}
	data, err := os.ReadFile(name)
	if err != nil || string(data) != "a" {
		t.Errorf("got %q, %v", data, err)
	}
}
