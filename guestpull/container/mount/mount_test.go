package mount

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/integration/require"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestBelow(t *testing.T) {
	for path, want := range map[string]bool{
		"/a/b": true, "/a/b/c": true, "/a": false, "/a/": false, "/": false, "": false, "/ab": false, "/a/../b": false, "/a/./b": false,
		"/a//b": false, "/a/b/": false, "/a/b\x00": false, "a/b": false, "/a/..": false, "/a/...": true,
	} {
		if got := Below("/a", path); got != want {
			t.Errorf("%q: %v", path, got)
		}
	}
}

func FuzzBelow(f *testing.F) {
	f.Add("/a/b/../../etc")
	f.Fuzz(func(t *testing.T, path string) {
		if Below("/a", path) && (filepath.Clean(path) != path || filepath.Dir(path) == "/") {
			t.Errorf("%q is taken to be below /a", path)
		}
	})
}

func TestPin(t *testing.T) {
	require.Root(t)
	root, pins := t.TempDir(), t.TempDir()
	must(t, os.MkdirAll(root+"/dir/sub", 0o755))
	must(t, os.WriteFile(root+"/dir/file", []byte("content"), 0o644))
	must(t, os.Symlink("/etc/passwd", root+"/dir/link"))
	must(t, os.Symlink("/etc", root+"/out"))
	must(t, unix.Mkfifo(root+"/pipe", 0o600))
	for name, test := range map[string]struct {
		source string
		class  error
	}{
		"file":            {"/dir/file", nil},
		"folder":          {"/dir", nil},
		"link":            {"/dir/link", errdefs.ErrInvalidArgument},
		"through a link":  {"/out/passwd", errdefs.ErrInvalidArgument},
		"missing":         {"/dir/none", errdefs.ErrNotFound},
		"pipe":            {"/pipe", errdefs.ErrInvalidArgument},
		"the root itself": {"", errdefs.ErrInvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			target := filepath.Join(pins, "pin")
			err := Pin(root, root+test.source, target)
			if !errors.Is(err, test.class) {
				t.Fatalf("got %v", err)
			}
			if err == nil {
				must(t, Unmount(target))
				must(t, os.Remove(target))
			}
			if _, err := os.Lstat(target); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("target is left: %v", err)
			}
		})
	}
}

func TestUnmountOfNothing(t *testing.T) {
	require.Root(t)
	must(t, Unmount(t.TempDir()))
	must(t, Unmount(t.TempDir()+"/none"))
}

func TestMkdirBelow(t *testing.T) {
	root := t.TempDir()
	made, err := MkdirBelow(root, root+"/a/b", 0o2775, 0o777|os.ModeSticky)
	if must(t, err); !made {
		t.Error("a new folder was there already")
	}
	if made, err := MkdirBelow(root, root+"/a/b", 0o700, 0o700); made || err != nil {
		t.Errorf("again: %v, %v", made, err)
	}
	must(t, os.WriteFile(root+"/a/file", nil, 0o600))
	if made, err := MkdirBelow(root, root+"/a/file", 0o700, 0o700); made || err != nil {
		t.Errorf("a file is there: %v, %v", made, err)
	}
	for path, want := range map[string]os.FileMode{"/a": os.ModeDir | 0o775, "/a/b": os.ModeDir | os.ModeSticky | 0o777, "/a/file": 0o600} {
		info, err := os.Stat(root + path)
		if must(t, err); info.Mode()&^os.ModeSetgid != want {
			t.Errorf("%s: %v, want %v", path, info.Mode(), want)
		}
	}
	outside := t.TempDir()
	must(t, os.Symlink(outside, root+"/out"))
	must(t, os.Symlink("a", root+"/inside"))
	for _, path := range []string{root + "/out/x", root + "/inside/x", root + "/a/file/x", root, outside + "/x", root + "/a/../x"} {
		if _, err := MkdirBelow(root, path, 0o755, 0o777); err == nil {
			t.Errorf("%s was made", path)
		}
	}
	for dir, want := range map[string]int{outside: 0, root + "/a": 2} {
		if entries, err := os.ReadDir(dir); err != nil || len(entries) != want {
			t.Errorf("%s: %v, %v", dir, entries, err)
		}
	}
}
