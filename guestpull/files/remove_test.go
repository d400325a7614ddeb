package files

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/containerd/errdefs"

	guestpb "github.com/coffer-project/coffer/proto/guestpull/v1"
)

func remove(t *testing.T, r *Receiver, paths ...string) error {
	t.Helper()
	return r.RemoveFiles(t.Context(), &guestpb.RemoveFilesRequest{Paths: paths})
}

func TestRemove(t *testing.T) {
	r, dir := base(t)
	mustCopy(t, r,
		folder(dir+"/vol/..1", 0o755), piece(dir+"/vol/..1/key", 5, 0, "value"), piece(dir+"/vol/..10/key", 3, 0, "new"),
		link(dir+"/vol/..data", "..1"), piece(dir+"/vol/..1/half", 100, 0, "unfinished"))
	if err := remove(t, r, dir+"/vol/..1", dir+"/vol/..data", dir+"/vol/nothing"); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(filepath.Join(dir, "vol"))
	if err != nil || len(left) != 1 || left[0].Name() != "..10" {
		t.Errorf("left: %v, %v", left, err)
	}
	if r.bytes != 3 || len(r.inFlight) != 0 || len(r.entries) != 3 {
		t.Errorf("%d bytes, %d in flight, entries %v", r.bytes, len(r.inFlight), r.entries)
	}
	if left, err := os.ReadDir(filepath.Join(dir, incoming)); err != nil || len(left) != 0 {
		t.Errorf("unfinished files are left: %v, %v", left, err)
	}
}

// TestRemoveFollowsNoLink removes a link to another volume, and asks for what lies behind links.
func TestRemoveFollowsNoLink(t *testing.T) {
	r, dir := base(t)
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.Mkdir(outside, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(outside, "file"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	mustCopy(t, r, piece(dir+"/other/file", 1, 0, "x"), folder(dir+"/vol", 0o755))
	for name, target := range map[string]string{"inside": "../other", "outside": outside} {
		// As a container can plant them in a volume that it may write to.
		if err := os.Symlink(target, filepath.Join(dir, "vol", name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := remove(t, r, dir+"/vol/outside/file"); err == nil {
		t.Error("removed behind a link that leads out")
	}
	if err := remove(t, r, dir+"/vol"); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{filepath.Join(outside, "file"), filepath.Join(dir, "other/file")} {
		if _, err := os.Lstat(path); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
	if _, err := os.Lstat(filepath.Join(dir, "vol")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the volume is still there: %v", err)
	}
}

func TestRemoveRefuses(t *testing.T) {
	r, dir := base(t)
	mustCopy(t, r, piece(dir+"/vol/file", 1, 0, "x"))
	for name, paths := range map[string][]string{
		"everything":      {dir},
		"everything else": {dir + "/"},
		"elsewhere":       {"/etc/passwd"},
		"upwards":         {dir + "/../x"},
		"relative":        {"vol"},
		"unfinished":      {dir + "/" + incoming},
		"one of several":  {dir + "/vol/file", "/etc"},
		"too many":        slices.Repeat([]string{dir + "/vol/file"}, maxRemoved+1),
	} {
		t.Run(name, func(t *testing.T) {
			if err := remove(t, r, paths...); !errors.Is(err, errdefs.ErrInvalidArgument) {
				t.Errorf("got %v", err)
			}
			if _, err := os.Lstat(filepath.Join(dir, "vol/file")); err != nil {
				t.Error(err)
			}
		})
	}
}
