package unpack

import (
	"archive/tar"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/pkg/archive"
	"golang.org/x/sys/unix"

	rt "github.com/coffer-project/coffer/integration/registrytest"
	"github.com/coffer-project/coffer/integration/require"
)

// TestSameTreeAsContainerd unpacks single layers beside containerd's own apply: every name, attribute and time is the same.
func TestSameTreeAsContainerd(t *testing.T) {
	require.Root(t)
	capability := string([]byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	var many []rt.Entry
	for i := range 3 * openDirs {
		many = append(many, rt.Entry{Name: fmt.Sprintf("m/%d/f", i), Body: "x", UID: i})
	}
	cases := map[string][]rt.Entry{
		"below a link":          {{Name: "usr/lib/", Mode: 0o711}, {Name: "lib", Type: tar.TypeSymlink, Link: "usr/lib"}, {Name: "lib/a", Body: "a"}, {Name: "lib/sub/b", Body: "b"}},
		"below an absolute one": {{Name: "usr/"}, {Name: "l", Type: tar.TypeSymlink, Link: "/usr/../usr"}, {Name: "l/a", Body: "a"}},
		"below a dangling one":  {{Name: "l", Type: tar.TypeSymlink, Link: "not/there"}, {Name: "l/a", Body: "a"}},
		"folder becomes link":   {{Name: "x/"}, {Name: "d/"}, {Name: "d/f", Body: "1"}, {Name: "d/sub/g"}, {Name: "d", Type: tar.TypeSymlink, Link: "x"}, {Name: "d/f", Body: "2"}},
		"link becomes folder":   {{Name: "x/"}, {Name: "d", Type: tar.TypeSymlink, Link: "x"}, {Name: "d/f", Body: "1"}, {Name: "d/"}, {Name: "d/f", Body: "2"}},
		"twice":                 {{Name: "f", Body: "long one", Mode: 0o4755, UID: 3}, {Name: "f", Body: "2", Mode: 0o600}, {Name: "d/", Mode: 0o700, UID: 4}, {Name: "d/", Mode: 0o755}},
		"setgid folder":         {{Name: "s/", Mode: 0o2775, GID: 50}, {Name: "s/f", Body: "x"}, {Name: "s/d/"}, {Name: "s/d/f"}, {Name: "s/l", Type: tar.TypeSymlink, Link: "f"}, {Name: "s/p", Type: tar.TypeFifo}},
		"all bits":              {{Name: "f", Mode: 0o7777, UID: 1, GID: 2}, {Name: "g", Mode: 0o22}, {Name: "d/", Mode: 0o1777}, {Name: "e/", Mode: 0o22}, {Name: "p", Type: tar.TypeFifo, Mode: 0o666}},
		"hard links":            {{Name: "a", Body: "a"}, {Name: "l", Type: tar.TypeSymlink, Link: "a"}, {Name: "d/a", Type: tar.TypeLink, Link: "a", UID: 7, Mode: 0o640}, {Name: "d/l", Type: tar.TypeLink, Link: "l", UID: 8}, {Name: "x", Body: "x"}, {Name: "x", Type: tar.TypeLink, Link: "/d/../a"}},
		"extended attributes":   {{Name: "f", Body: "x", UID: 9, Xattrs: map[string]string{"security.capability": capability, "user.note": "hi"}}, {Name: "d/", Xattrs: map[string]string{"user.note": "d"}}, {Name: "l", Type: tar.TypeSymlink, Link: "f", Xattrs: map[string]string{"user.note": "none"}}},
		"many folders":          many,
		"large file":            {{Name: "big", Body: strings.Repeat("0123456789", 100_001)}},
	}
	for _, mask := range []int{0o022, 0o077, 0} {
		for name, entries := range cases {
			t.Run(fmt.Sprintf("%s, umask %o", name, mask), func(t *testing.T) {
				before := unix.Umask(mask)
				defer unix.Umask(before)
				base := require.Tmpfs(t, 0, "")
				want, got := filepath.Join(base, "want"), filepath.Join(base, "got")
				for _, dir := range []string{want, got} {
					if err := os.Mkdir(dir, 0o755); err != nil {
						t.Fatal(err)
					}
				}
				stream := rt.Tar(entries...)
				if _, err := archive.Apply(t.Context(), want, bytes.NewReader(stream)); err != nil {
					t.Fatal(err)
				}
				if _, _, err := New(DefaultLimits()).Apply(t.Context(), got, bytes.NewReader(stream)); err != nil {
					t.Fatal(err)
				}
				// Times first: to describe a tree is to read it.
				compare(t, times(t, want, entries), times(t, got, entries))
				compare(t, describe(t, want), describe(t, got))
			})
		}
	}
}

// times lists the times of what the layer names; folders that it does not name have the time at which they were made.
func times(t *testing.T, root string, entries []rt.Entry) []string {
	t.Helper()
	var lines []string
	for _, e := range entries {
		info, err := os.Lstat(filepath.Join(root, e.Name))
		if err != nil {
			continue
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			t.Fatalf("no stat of %s", e.Name)
		}
		line := fmt.Sprintf("%s mtime=%v", e.Name, st.Mtim)
		if info.Mode().IsRegular() {
			// To look a name up is to read the links and folders on the way to it.
			line += fmt.Sprintf(" atime=%v", st.Atim)
		}
		lines = append(lines, line)
	}
	return lines
}

// TestFewDescriptors: folders are kept open in a bounded number, and closed at the end.
func TestFewDescriptors(t *testing.T) {
	require.Root(t)
	count := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	var entries []rt.Entry
	for i := range 10 * openDirs {
		entries = append(entries, rt.Entry{Name: fmt.Sprintf("d%d/f", i)})
	}
	before := count()
	if _, _, err := apply(t, New(DefaultLimits()), entries...); err != nil {
		t.Fatal(err)
	}
	if after := count(); after > before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}
