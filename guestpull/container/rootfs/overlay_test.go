package rootfs

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/integration/require"
)

// layers makes n layers with long names: as one mount option they would not fit a page. Layer i has the file i and writes its number
// into the file top.
func layers(t *testing.T, n int) []string {
	t.Helper()
	base := t.TempDir()
	var out []string
	for i := range n {
		dir := filepath.Join(base, fmt.Sprintf("%s:,%d", strings.Repeat("l", 60), i))
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{fmt.Sprint(i), "top"} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(fmt.Sprint(i)), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		out = append(out, dir)
	}
	return out
}

func TestOverlay(t *testing.T) {
	require.Root(t)
	for _, n := range []int{0, 1, 2, 127} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			lower, scratch := layers(t, n), t.TempDir()
			target := scratch + "/rootfs"
			if err := Overlay(lower, scratch, target); err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := unix.Unmount(target, 0); err != nil {
					t.Error(err)
				}
			}()
			for i := range n {
				if _, err := os.Stat(filepath.Join(target, fmt.Sprint(i))); err != nil {
					t.Error(err)
				}
			}
			if got, err := os.ReadFile(target + "/top"); n > 0 && (err != nil || string(got) != fmt.Sprint(n-1)) {
				t.Errorf("topmost layer: %s, %v", got, err)
			}
			if err := os.WriteFile(target+"/top", []byte("mine"), 0o600); err != nil {
				t.Error(err)
			}
			if n > 0 {
				if got, err := os.ReadFile(lower[n-1] + "/top"); err != nil || string(got) != fmt.Sprint(n-1) {
					t.Errorf("the layer was changed: %s, %v", got, err)
				}
			}
		})
	}
	if err := Overlay([]string{"/no/such/layer"}, t.TempDir(), t.TempDir()+"/x"); err == nil {
		t.Error("an overlay of nothing")
	}
	if err := Overlay(make([]string, maxLayers+1), t.TempDir(), t.TempDir()+"/x"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("too many layers: %v", err)
	}
}
