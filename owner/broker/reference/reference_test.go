package reference

import (
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/owner/broker/store/files"
)

func TestValues(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	s, err := files.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	v := New(s, func() time.Time { return now })
	ctx := t.Context()
	payload := base64.StdEncoding.EncodeToString([]byte(`{"snp_launch_measurement":["aa","bb"],"a/b c":7}`))
	for _, document := range []string{
		`{"version":"0.1.0","type":"sample","payload":"` + payload + `"}`,
		`{"snp_launch_measurement":["cc"],"ok":true}`, // replaces
	} {
		if _, err := v.Register(ctx, []byte(document)); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]any{
		"snp_launch_measurement": []any{"cc"}, "a/b c": 7.0, "ok": true, "none": nil, "": nil, strings.Repeat("x", 200): nil,
	} {
		if got, err := v.Reference(ctx, name); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %v, %v", name, got, err)
		}
	}
	entries, err := v.List(ctx)
	if err != nil || len(entries) != 3 || entries[0].Name != "a/b c" || !entries[0].Expiration.Equal(now.AddDate(1, 0, 0)) {
		t.Errorf("list %+v, %v", entries, err)
	}
	if err := v.Delete(ctx, "ok"); err != nil {
		t.Error(err)
	}
	if _, err := v.Get(ctx, "ok"); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("after delete: %v", err)
	}
	now = now.AddDate(1, 0, 0)
	if got, err := v.Reference(ctx, "a/b c"); got != nil || err != nil {
		t.Errorf("an ended value is trusted: %v, %v", got, err)
	}
	now = now.AddDate(-1, 0, 0)
	damaged := filepath.Join(dir, "reference", "n"+base64.RawURLEncoding.EncodeToString([]byte("a/b c")))
	if err := os.WriteFile(damaged, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := v.Reference(ctx, "a/b c"); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("damaged value: %v", err)
	}
}

func TestRegisterRefuses(t *testing.T) {
	s, err := files.Open(filepath.Join(t.TempDir(), "store"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	v := New(s, time.Now)
	for name, document := range map[string]string{
		"not JSON": "x", "list": "[]", "no value": `{"good":1,"bad":null}`, "swid": `{"version":"0.1.0","type":"swid","payload":"e30="}`,
		"long name": fmt.Sprintf(`{"good":1,%q:1}`, strings.Repeat("x", maxName+1)), "empty name": `{"good":1,"":1}`,
	} {
		if _, err := v.Register(t.Context(), []byte(document)); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if entries, err := v.List(t.Context()); err != nil || len(entries) != 0 {
		t.Errorf("kept %v, %v", entries, err)
	}
}
