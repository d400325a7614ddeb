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
	must(t, MkdirBelow(root, root+"/a/b", 0o777|os.ModeSticky))
	info, err := os.Stat(root + "/a/b")
	must(t, err)
	if info.Mode() != os.ModeDir|os.ModeSticky|0o777 {
		t.Errorf("mode: %v", info.Mode())
	}
	outside := t.TempDir()
	must(t, os.Symlink(outside, root+"/out"))
	for _, path := range []string{root + "/out/x", root, outside + "/x", root + "/a/../x"} {
		if err := MkdirBelow(root, path, 0o777); err == nil {
			t.Errorf("%s was made", path)
		}
	}
	if entries, err := os.ReadDir(outside); err != nil || len(entries) > 0 {
		t.Errorf("outside: %v, %v", entries, err)
	}
}
