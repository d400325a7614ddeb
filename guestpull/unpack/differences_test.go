package unpack

import (
	"archive/tar"
	"slices"
	"strings"
	"testing"

	rt "github.com/coffer-project/coffer/integration/registrytest"
	"github.com/coffer-project/coffer/integration/require"
)

// TestDifferencesFromSerialApply lists where layers that are unpacked side by side and stacked show something else than
// containerd's apply of one layer over the other in one folder, and why. Whatever is not here is the same, see the tests
// beside. sparse_test.go has one more: old GNU sparse files, which containerd refuses.
func TestDifferencesFromSerialApply(t *testing.T) {
	require.Root(t)
	cases := map[string]struct {
		why     string
		layers  [][]rt.Entry
		only    []string // lines that begin so are theirs alone
		instead []string // and these ours
	}{
		"other name of a link's target": {
			why: "overlay copies one name up, as when a container makes the link: names that the file has in lower layers beside stay what they were",
			layers: [][]rt.Entry{
				{{Name: "a", Body: "a"}, {Name: "b", Type: tar.TypeLink, Link: "a"}},
				{{Name: "c", Type: tar.TypeLink, Link: "a", UID: 3}},
			},
			only:    []string{"b mode=100644 owner=3:0"},
			instead: []string{"b mode=100644 owner=0:0"},
		},
		"folder behind a lower layer's link": {
			why: "a layer is unpacked without those below, so it cannot know that the name is a link there; containerd's overlay applier does the same",
			layers: [][]rt.Entry{
				{{Name: "usr/lib/"}, {Name: "lib", Type: tar.TypeSymlink, Link: "usr/lib"}},
				{{Name: "lib/f", Body: "f"}},
			},
			only:    []string{"lib mode=120777", "usr/lib/f mode="},
			instead: []string{"lib mode=40755", "lib/f mode="},
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			want, got := describe(t, serial(t, tc.layers)), describe(t, stacked(t, tc.layers))
			begins := func(line string, with []string) bool {
				return slices.ContainsFunc(with, func(prefix string) bool { return strings.HasPrefix(line, prefix) })
			}
			for _, line := range want {
				if slices.Contains(got, line) == begins(line, tc.only) {
					t.Errorf("theirs: %s (%s)", line, tc.why)
				}
			}
			for _, line := range got {
				if slices.Contains(want, line) == begins(line, tc.instead) {
					t.Errorf("ours: %s (%s)", line, tc.why)
				}
			}
		})
	}
}
