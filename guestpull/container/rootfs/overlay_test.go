package rootfs

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
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
			if err := Overlay(lower, scratch, target, Owner{}); err != nil {
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
	if err := Overlay([]string{"/no/such/layer"}, t.TempDir(), t.TempDir()+"/x", Owner{}); err == nil {
		t.Error("an overlay of nothing")
	}
	if err := Overlay(make([]string, maxLayers+1), t.TempDir(), t.TempDir()+"/x", Owner{}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("too many layers: %v", err)
	}
}

// TestOverlayOfAnotherOwner: in the user namespace everything is as in the image, in the guest it belongs to nobody there.
func TestOverlayOfAnotherOwner(t *testing.T) {
	require.Root(t)
	lower, scratch := layers(t, 3), t.TempDir()
	if err := os.Chown(lower[1]+"/1", 7, 8); err != nil {
		t.Fatal(err)
	}
	holder := exec.Command("sleep", "1000")
	holder.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{HostID: 1000, Size: 100}}, GidMappings: []syscall.SysProcIDMap{{HostID: 2000, Size: 100}},
	}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = holder.Process.Kill()
		_ = holder.Wait()
	}()
	target := scratch + "/rootfs"
	if err := Overlay(lower, scratch, target, Owner{Namespace: fmt.Sprintf("/proc/%d/ns/user", holder.Process.Pid), UID: 1000, GID: 2000}); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(target, 0); err != nil {
			t.Error(err)
		}
	}()
	for path, want := range map[string]string{"": "1000:2000", "/0": "1000:2000", "/1": "1007:2008"} {
		var st unix.Stat_t
		if err := unix.Stat(target+path, &st); err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprintf("%d:%d", st.Uid, st.Gid); got != want {
			t.Errorf("owner of %s/ is %s, want %s", path, got, want)
		}
	}
	volume := t.TempDir() + "/volume"
	if err := ReadOnly(lower, scratch+"/more", volume, Owner{Namespace: fmt.Sprintf("/proc/%d/ns/user", holder.Process.Pid), UID: 1000, GID: 2000}); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(volume, 0); err != nil {
			t.Error(err)
		}
	}()
	if info, err := os.Stat(volume + "/1"); err != nil || info.Sys().(*syscall.Stat_t).Uid != 1007 {
		t.Errorf("owner in a read-only image: %v, %v", info, err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), " "+scratch+"/mapped") {
		t.Error("mounts of layers are left")
	}
	if err := Overlay(lower, t.TempDir(), t.TempDir()+"/x", Owner{Namespace: "/proc/self/ns/uts", UID: 1000}); err == nil {
		t.Error("an overlay for no user namespace")
	}
}

func TestReadOnly(t *testing.T) {
	require.Root(t)
	for _, n := range []int{0, 1, 3} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			lower, scratch := layers(t, n), t.TempDir()
			target := scratch + "/image"
			if err := ReadOnly(lower, scratch+"/scratch", target, Owner{}); err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := unix.Unmount(target, 0); err != nil {
					t.Error(err)
				}
			}()
			if got, err := os.ReadFile(target + "/top"); n > 0 && (err != nil || string(got) != fmt.Sprint(n-1)) {
				t.Errorf("topmost layer: %s, %v", got, err)
			}
			if err := os.WriteFile(target+"/x", nil, 0o600); !errors.Is(err, unix.EROFS) {
				t.Errorf("writing gave %v", err)
			}
			if err := unix.Mount("", target, "", unix.MS_REMOUNT, ""); err == nil {
				if err := os.WriteFile(target+"/x", nil, 0o600); !errors.Is(err, unix.EROFS) {
					t.Errorf("writing after a remount gave %v", err)
				}
			}
		})
	}
}
