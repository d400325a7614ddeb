package files

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	guestpb "github.com/coffer-project/coffer/proto/guestpull/v1"
	"github.com/coffer-project/coffer/proto/sealed"
)

// safe opens what it has.
type safe map[string]string

func (s safe) open(_ context.Context, text string) ([]byte, error) {
	value, ok := s[text]
	if !ok {
		return nil, fmt.Errorf("no such secret: %w", errdefs.ErrPermissionDenied)
	}
	return []byte(value), nil
}

func wantContent(t *testing.T, name, want string) {
	t.Helper()
	if got, err := os.ReadFile(name); err != nil || string(got) != want {
		t.Errorf("%s: %q, %v, want %q", filepath.Base(name), got, err, want)
	}
}

// TestSealedVolume does what kubelet's updates of a secret look like, half of whose keys are sealed.
func TestSealedVolume(t *testing.T) {
	r, dir := base(t)
	vol, secrets := dir+"/vol", safe{"sealed.old": "first", "sealed.new": "sealed.looks-so", "sealed.other": "others"}
	version := func(name, text string) {
		mustCopy(t, r, folder(vol, 0o755), folder(vol+"/"+name, 0o755), piece(vol+"/"+name+"/key", int64(len(text)), 0, text),
			piece(vol+"/"+name+"/plain", 9, 0, "sealed as"), link(vol+"/..data", name), link(vol+"/key", "..data/key"), link(vol+"/plain", "..data/plain"))
	}
	secrets["sealed as"] = "sealed as" // not a sealed secret: it lacks the prefix
	version("..1", "sealed.old\n")
	mustCopy(t, r, piece(dir+"/beside", 12, 0, "sealed.other"))
	texts, err := r.Sealed(vol)
	if want := map[string]string{"..1/key": "sealed.old"}; err != nil || !maps.Equal(texts, want) {
		t.Fatalf("sealed are %v, %v", texts, err)
	}
	if n, err := r.Open(t.Context(), vol, secrets.open); n != 1 || err != nil {
		t.Fatalf("%d opened, %v", n, err)
	}
	wantContent(t, vol+"/key", "first")
	wantContent(t, vol+"/plain", "sealed as")
	wantContent(t, dir+"/beside", "sealed.other")
	if info, err := os.Lstat(vol + "/..1/key"); err != nil || info.Mode() != 0o640 {
		t.Errorf("%v, %v", info, err)
	}
	if r.bytes != int64(len("first")+len("sealed as")+len("sealed.other")) {
		t.Errorf("%d bytes are counted", r.bytes)
	}
	// An update appears open, also one whose secret looks like a sealed one; opened again it stays.
	version("..2", "sealed.new")
	wantContent(t, vol+"/key", "sealed.looks-so")
	if texts, err := r.Sealed(vol); err != nil || len(texts) != 0 {
		t.Errorf("sealed are %v, %v", texts, err)
	}
	// One that cannot be opened does not appear, and leaves what is there.
	counted := r.bytes
	bad := piece(vol+"/..2/key", 14, 0, "sealed.unknown")
	if err := r.CopyFile(t.Context(), bad); !errdefs.IsPermissionDenied(err) || !strings.Contains(err.Error(), "vol/..2/key") {
		t.Errorf("an update with a secret that there is not: %v", err)
	}
	wantContent(t, vol+"/key", "sealed.looks-so")
	if left, err := os.ReadDir(filepath.Join(dir, incoming)); err != nil || len(left) != 0 || r.bytes != counted {
		t.Errorf("left behind: %v, %v; %d bytes are counted, were %d", left, err, r.bytes, counted)
	}
	// What is removed is not opened any more when it comes back.
	must(t, r.RemoveFiles(t.Context(), &guestpb.RemoveFilesRequest{Paths: []string{vol}}))
	version("..3", "sealed.old")
	wantContent(t, vol+"/key", "sealed.old")
	if len(r.openers) != 0 || len(r.opened) != 0 {
		t.Errorf("%d openers and %d opened files are known", len(r.openers), len(r.opened))
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestSealedFile(t *testing.T) {
	r, dir := base(t)
	secrets := safe{"sealed.a": strings.Repeat("x", 1<<19), "sealed.b": strings.Repeat("x", 1<<20)}
	mustCopy(t, r, piece(dir+"/a", 10, 0, "sealed.a\r\n"), piece(dir+"/b", 8, 0, "sealed.b"))
	if texts, err := r.Sealed(dir + "/a"); err != nil || !maps.Equal(texts, map[string]string{".": "sealed.a"}) {
		t.Errorf("sealed are %v, %v", texts, err)
	}
	if n, err := r.Open(t.Context(), dir+"/a", secrets.open); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	wantContent(t, dir+"/a", secrets["sealed.a"])
	// A secret counts like any file.
	if _, err := r.Open(t.Context(), dir+"/b", secrets.open); !errdefs.IsResourceExhausted(err) {
		t.Error(err)
	}
	wantContent(t, dir+"/b", "sealed.b")
	if err := r.CopyFile(t.Context(), piece(dir+"/a", 8, 0, "sealed.b")); !errdefs.IsResourceExhausted(err) {
		t.Error(err)
	}
	wantContent(t, dir+"/a", secrets["sealed.a"])
	if n, err := r.Open(t.Context(), dir+"/nothing", secrets.open); n != 0 || err != nil || len(r.openers) != 1 {
		t.Error(n, err, len(r.openers))
	}
}

func TestSealedLimits(t *testing.T) {
	for name, tc := range map[string]struct {
		prepare func(t *testing.T, r *Receiver, dir string)
		path    string
		want    error
	}{
		"elsewhere": {func(*testing.T, *Receiver, string) {}, "/etc", errdefs.ErrInvalidArgument},
		"too large": {func(t *testing.T, r *Receiver, dir string) {
			t.Helper()
			mustCopy(t, r, piece(dir+"/v/x", sealed.MaxText+2, 0, sealed.Prefix+strings.Repeat("x", sealed.MaxText+2-len(sealed.Prefix))))
		}, "/v", errdefs.ErrInvalidArgument},
		"too many": {func(t *testing.T, r *Receiver, dir string) {
			t.Helper()
			for i := range maxSealed + 1 {
				mustCopy(t, r, piece(fmt.Sprintf("%s/v/%d", dir, i), 8, 0, "sealed.x"))
			}
		}, "/v", errdefs.ErrResourceExhausted},
	} {
		t.Run(name, func(t *testing.T) {
			r, dir := base(t)
			tc.prepare(t, r, dir)
			path := tc.path
			if path == "/v" {
				path = dir + path
			}
			_, listed := r.Sealed(path)
			_, opened := r.Open(t.Context(), path, safe{}.open)
			if !errors.Is(listed, tc.want) || !errors.Is(opened, tc.want) || len(r.openers) != 0 {
				t.Errorf("%v, %v, %d openers", listed, opened, len(r.openers))
			}
		})
	}
}

// TestSealedLinks: what a container has put into its mount is not followed, and a link of the host's is no sealed file.
func TestSealedLinks(t *testing.T) {
	r, dir := base(t)
	outside := filepath.Join(t.TempDir(), "outside")
	must(t, os.WriteFile(outside, []byte("sealed.a"), 0o600))
	mustCopy(t, r, folder(dir+"/v", 0o755), link(dir+"/v/link", outside), piece(dir+"/v/a", 8, 0, "sealed.a"), piece(dir+"/w", 8, 0, "sealed.a"))
	must(t, os.Remove(dir+"/v/a"))
	must(t, os.Symlink("../w", dir+"/v/a"))
	if n, err := r.Open(t.Context(), dir+"/v", safe{"sealed.a": "secret"}.open); n != 0 || err != nil {
		t.Errorf("%d opened, %v", n, err)
	}
	wantContent(t, outside, "sealed.a")
	wantContent(t, dir+"/w", "sealed.a")
}

// TestSealedMeanwhile changes a file while its secret is being fetched.
func TestSealedMeanwhile(t *testing.T) {
	for name, tc := range map[string]struct {
		meanwhile func(t *testing.T, r *Receiver, name string)
		want      string // empty: the file is gone
	}{
		"other text": {func(t *testing.T, r *Receiver, name string) {
			t.Helper()
			mustCopy(t, r, piece(name, 8, 0, "sealed.b"))
		}, "secret b"},
		"plain": {func(t *testing.T, r *Receiver, name string) {
			t.Helper()
			mustCopy(t, r, piece(name, 5, 0, "plain"))
		}, "plain"},
		"removed": {func(t *testing.T, r *Receiver, name string) {
			t.Helper()
			must(t, r.RemoveFiles(t.Context(), &guestpb.RemoveFilesRequest{Paths: []string{name}}))
		}, ""},
		"begun again": {func(t *testing.T, r *Receiver, name string) {
			t.Helper()
			mustCopy(t, r, piece(name, 8, 0, "seal"))
		}, "secret a"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, arriving := range []bool{false, true} {
				r, dir := base(t)
				file := dir + "/v/file"
				mustCopy(t, r, piece(file, 8, 0, "sealed.a"))
				asked := []string{}
				open := func(ctx context.Context, text string) ([]byte, error) {
					if asked = append(asked, text); len(asked) == 1 {
						tc.meanwhile(t, r, file)
					}
					return safe{"sealed.a": "secret a", "sealed.b": "secret b", "sealed.c": "secret c"}.open(ctx, text)
				}
				if arriving {
					r.openers["v"] = open
					if err := r.CopyFile(t.Context(), piece(file, 8, 0, "sealed.c")); !errdefs.IsFailedPrecondition(err) {
						t.Errorf("%s: %v, asked for %v", name, err, asked)
					}
				} else if _, err := r.Open(t.Context(), dir+"/v", open); err != nil {
					t.Error(err)
				}
				want := tc.want
				if arriving && name == "begun again" {
					want = "sealed.a" // of before anybody opened files here
				}
				got, err := os.ReadFile(file)
				if string(got) != want || err != nil && !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("arriving %t: the file is %q, want %q; %v", arriving, got, want, err)
				}
				if left, err := os.ReadDir(filepath.Join(dir, incoming)); err != nil || len(left) > len(r.inFlight) {
					t.Errorf("left behind: %v, %v", left, err)
				}
				if r.bytes != int64(len(got))+8*int64(len(r.inFlight)) {
					t.Errorf("%d bytes are counted", r.bytes)
				}
				if slices.Contains(asked, "") {
					t.Error("asked for nothing")
				}
			}
		})
	}
}
