package unpack

import (
	"archive/tar"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	rt "github.com/coffer-project/coffer/integration/registrytest"
	"github.com/coffer-project/coffer/integration/require"
)

// TestOverlayShowsWhatSerialApplyMakes unpacks layers side by side and stacks them with the kernel's overlay, and holds the
// result against containerd's own apply, which puts one layer over the other in one folder.
func TestOverlayShowsWhatSerialApplyMakes(t *testing.T) {
	require.Root(t)
	capability := string([]byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	cases := map[string][][]rt.Entry{
		"kinds of files": {{
			{Name: "bin/", Mode: 0o755},
			{Name: "bin/tool", Body: "elf", Mode: 0o4755, UID: 5, GID: 6},
			{Name: "bin/link", Type: tar.TypeSymlink, Link: "tool"},
			{Name: "bin/hard", Type: tar.TypeLink, Link: "bin/tool"},
			{Name: "dangling", Type: tar.TypeSymlink, Link: "/no/where", UID: 7},
			{Name: "pipe", Type: tar.TypeFifo, Mode: 0o600},
			{Name: "tmp/", Mode: 0o1777},
			{Name: "setgid/", Mode: 0o2750, GID: 9},
			{Name: "empty"},
			{Name: "caps", Body: "x", Xattrs: map[string]string{"security.capability": capability, "user.note": "hi"}},
			{Name: strings.Repeat("d/", 60) + "deep", Body: "deep"},
			{Name: "ümläut 文", Body: "u"},
		}},
		"whiteout of file and folder": {
			{{Name: "a", Body: "1"}, {Name: "d/", Mode: 0o700}, {Name: "d/x", Body: "x"}, {Name: "e/y", Body: "y"}},
			{{Name: ".wh.a"}, {Name: ".wh.d"}, {Name: "e/.wh.y"}},
		},
		"opaque folder": {
			{{Name: "d/"}, {Name: "d/old", Body: "o"}, {Name: "d/sub/"}, {Name: "d/sub/f", Body: "f"}},
			{{Name: "d/"}, {Name: "d/.wh..wh..opq"}, {Name: "d/new", Body: "n"}},
		},
		"opaque marker after the new files": {
			{{Name: "d/old", Body: "o"}},
			{{Name: "d/new", Body: "n"}, {Name: "d/.wh..wh..opq"}},
		},
		"hidden and made anew": {
			{{Name: "d/"}, {Name: "d/old", Body: "o"}, {Name: "f", Body: "1"}},
			{{Name: ".wh.d"}, {Name: "d/"}, {Name: "d/new", Body: "n"}, {Name: ".wh.f"}, {Name: "f", Body: "2"}},
		},
		"file becomes folder and back": {
			{{Name: "x", Body: "file"}, {Name: "y/"}, {Name: "y/f", Body: "f"}},
			{{Name: "x/"}, {Name: "x/f", Body: "f"}, {Name: "y", Body: "file"}},
			{{Name: "x", Type: tar.TypeSymlink, Link: "y"}},
		},
		"folder without an entry": {
			{{Name: "home/", Mode: 0o711, UID: 3, GID: 4}, {Name: "home/me/", Mode: 0o700, UID: 1000, GID: 1000}},
			{{Name: "home/me/file", Body: "1", UID: 1000}},
			{{Name: "home/me/sub/file", Body: "2"}, {Name: "new/made/file", Body: "3"}},
		},
		"attributes change": {
			{{Name: "d/", Mode: 0o700}, {Name: "d/f", Body: "1", Mode: 0o600}},
			{{Name: "d/", Mode: 0o755, UID: 8}},
		},
		"hard links to lower layers": {
			{{Name: "bin/", Mode: 0o711, UID: 4}, {Name: "bin/a", Body: strings.Repeat("a", 300_000), Mode: 0o4755, UID: 5, Xattrs: map[string]string{"user.note": "a"}}, {Name: "b", Type: tar.TypeSymlink, Link: "bin/a"}, {Name: "p", Type: tar.TypeFifo, Mode: 0o600}},
			{{Name: "x/y/a", Type: tar.TypeLink, Link: "/bin/a", Mode: 0o755, UID: 6}, {Name: "b2", Type: tar.TypeLink, Link: "b"}, {Name: "p2", Type: tar.TypeLink, Link: "p", Mode: 0o640}},
			{{Name: "bin/c", Type: tar.TypeLink, Link: "bin/../b2", Mode: 0o500}},
		},
		"chain of hard links to a lower layer": {
			{{Name: "a", Body: "a"}},
			{{Name: "b", Type: tar.TypeLink, Link: "a"}, {Name: "c", Type: tar.TypeLink, Link: "b"}, {Name: "d", Type: tar.TypeLink, Link: "a", UID: 3}},
		},
		"hard link and then its target changes": {
			{{Name: "a", Body: "old"}, {Name: "b", Body: "old b"}, {Name: "d/f", Body: "f"}, {Name: "o/f", Body: "f"}},
			{{Name: "ha", Type: tar.TypeLink, Link: "a"}, {Name: "a", Body: "new"}, {Name: "hb", Type: tar.TypeLink, Link: "b"}, {Name: ".wh.b"}, {Name: "hd", Type: tar.TypeLink, Link: "d/f"}, {Name: ".wh.d"}, {Name: "ho", Type: tar.TypeLink, Link: "o/f"}, {Name: "o/.wh..wh..opq"}},
		},
		"hard link in the place of something": {
			{{Name: "a", Body: "a"}, {Name: "d/x", Body: "x"}, {Name: "f", Body: "f"}},
			{{Name: "d", Type: tar.TypeLink, Link: "a"}, {Name: ".wh.f"}, {Name: "f", Type: tar.TypeLink, Link: "a"}, {Name: "g/h", Type: tar.TypeLink, Link: "a"}, {Name: "g", Body: "won"}, {Name: "k", Type: tar.TypeLink, Link: "a"}, {Name: "k", Body: "won"}},
		},
		"hard link through links of lower layers": {
			{{Name: "usr/lib/x", Body: "x"}, {Name: "lib", Type: tar.TypeSymlink, Link: "/usr/../usr/lib"}},
			{{Name: "more", Type: tar.TypeSymlink, Link: "lib"}},
			{{Name: "h", Type: tar.TypeLink, Link: "more/x"}},
		},
		"hard link below what was hidden": {
			{{Name: "d/", Mode: 0o700, UID: 9}, {Name: "d/a", Body: "0"}, {Name: "d/b", Body: "0"}},
			{{Name: "d/.wh..wh..opq"}, {Name: "d/b", Body: "1"}, {Name: "d/s/a", Body: "s"}},
			{{Name: "h", Type: tar.TypeLink, Link: "d/b"}, {Name: "d/s/h", Type: tar.TypeLink, Link: "d/s/a"}},
		},
		"folder without an entry that is hidden below": {
			{{Name: "d/"}, {Name: "d/s/", Mode: 0o700, UID: 9}},
			{{Name: "d/"}, {Name: "d/.wh..wh..opq"}},
			{{Name: "d/s/f", Body: "f"}},
		},
		"folder without an entry has attributes": {
			{{Name: "d/", Xattrs: map[string]string{"user.note": "d"}}},
			{{Name: "d/f", Body: "f"}},
		},
		"file over file in three layers": {
			{{Name: "f", Body: "1"}}, {{Name: "f", Body: "22"}}, {{Name: ".wh.f"}}, {{Name: "f", Body: "333", UID: 2}},
		},
	}
	for name, layers := range cases {
		t.Run(name, func(t *testing.T) {
			want := serial(t, layers)
			got := stacked(t, layers)
			compare(t, describe(t, want), describe(t, got))
		})
	}
}

func serial(t *testing.T, layers [][]rt.Entry) string {
	t.Helper()
	dir := t.TempDir()
	for _, entries := range layers {
		if _, err := archive.Apply(t.Context(), dir, bytes.NewReader(rt.Tar(entries...))); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func stacked(t *testing.T, layers [][]rt.Entry) string {
	t.Helper()
	// A tmpfs as in the guest: an overlay cannot lie on another overlay.
	base := require.Tmpfs(t, 0, "")
	u := New(DefaultLimits())
	var dirs []string
	for i, entries := range layers {
		dir := filepath.Join(base, fmt.Sprint(i))
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		_, deferred, err := u.Apply(t.Context(), dir, bytes.NewReader(rt.Tar(entries...)))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := u.Complete(t.Context(), dir, deferred, dirs); err != nil {
			t.Fatal(err)
		}
		dirs = append(dirs, dir)
	}
	lower := slices.Clone(dirs)
	slices.Reverse(lower)
	target := filepath.Join(base, "merged")
	for _, d := range []string{target, filepath.Join(base, "up"), filepath.Join(base, "work")} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	opts := fmt.Sprintf("lowerdir=%s,upperdir=%s/up,workdir=%s/work", strings.Join(lower, ":"), base, base)
	if err := unix.Mount("overlay", target, "overlay", 0, opts); err != nil {
		t.Fatalf("mount overlay: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(target, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return target
}

// describe lists a tree with everything that a container can see of it.
func describe(t *testing.T, root string) []string {
	t.Helper()
	var (
		lines []string
		links = map[uint64]string{}
	)
	err := filepath.Walk(root, func(path string, info os.FileInfo, err error) error {
		if err != nil || path == root {
			return err
		}
		name, _ := filepath.Rel(root, path)
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return fmt.Errorf("no stat of %s", path)
		}
		line := fmt.Sprintf("%s mode=%o owner=%d:%d", name, st.Mode, st.Uid, st.Gid)
		switch {
		case info.Mode().IsRegular():
			body, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			if len(body) > 100 {
				body = []byte(digest.FromBytes(body))
			}
			line += fmt.Sprintf(" body=%q mtime=%d", body, info.ModTime().UnixNano())
			if first, again := links[st.Ino]; again {
				line += " same as " + first
			} else if st.Nlink > 1 {
				links[st.Ino] = name
			}
		case info.Mode()&os.ModeSymlink != 0:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line += " -> " + target
		}
		for _, key := range []string{"security.capability", "user.note"} {
			buf := make([]byte, 64)
			if n, err := unix.Lgetxattr(path, key, buf); err == nil {
				line += fmt.Sprintf(" %s=%x", key, buf[:n])
			}
		}
		lines = append(lines, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

func compare(t *testing.T, want, got []string) {
	t.Helper()
	for _, line := range want {
		if !slices.Contains(got, line) {
			t.Errorf("missing: %s", line)
		}
	}
	for _, line := range got {
		if !slices.Contains(want, line) {
			t.Errorf("too much: %s", line)
		}
	}
}
