package mount

import (
	"os"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/integration/require"
)

// shared mounts a tmpfs that passes mounts on, and returns it open.
func shared(t *testing.T, root string) *os.File {
	t.Helper()
	must(t, os.Mkdir(root+"/v", 0o755))
	must(t, Tmpfs(root, root+"/v", 0, ""))
	t.Cleanup(func() { must(t, Unmount(root+"/v")) })
	dir, err := Open(root, root+"/v")
	must(t, err)
	t.Cleanup(func() { dir.Close() })
	must(t, Propagate(dir, Shared, false))
	return dir
}

// mountIn mounts a tmpfs with a file in it.
func mountIn(t *testing.T, dir string) {
	t.Helper()
	must(t, os.MkdirAll(dir, 0o755))
	must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, ""))
	must(t, os.WriteFile(dir+"/file", nil, 0o600))
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// TestPinVolume: who sees whose mounts, and that a pin goes without taking anything along.
func TestPinVolume(t *testing.T) {
	require.Root(t)
	root := t.TempDir()
	dir := shared(t, root)
	pins := map[Propagation]string{Private: root + "/private", Slave: root + "/slave", Shared: root + "/shared"}
	removes := map[Propagation]func() error{}
	for kind, target := range pins {
		remove, err := PinVolume(dir, target, kind)
		must(t, err)
		t.Cleanup(func() { must(t, remove()) })
		removes[kind] = remove
	}
	for name, test := range map[string]struct {
		by   string
		seen map[string]bool
	}{
		"volume":  {root + "/v", map[string]bool{pins[Private]: false, pins[Slave]: true, pins[Shared]: true}},
		"shared":  {pins[Shared], map[string]bool{root + "/v": true, pins[Private]: false, pins[Slave]: true}},
		"slave":   {pins[Slave], map[string]bool{root + "/v": false, pins[Private]: false, pins[Shared]: false}},
		"private": {pins[Private], map[string]bool{root + "/v": false, pins[Slave]: false, pins[Shared]: false}},
	} {
		mountIn(t, test.by+"/"+name)
		for at, want := range test.seen {
			if got := exists(at + "/" + name + "/file"); got != want {
				t.Errorf("mount in %s: seen at %s is %t", test.by, at, got)
			}
		}
	}
	must(t, unix.Mount("tmpfs", root+"/v", "tmpfs", 0, "")) // over the volume, and over the pins that share it
	for _, remove := range removes {
		must(t, remove())
	}
	if exists(root + "/v/volume") {
		t.Error("the mount over the volume went with a pin")
	}
	must(t, unix.Unmount(root+"/v", 0))
	if !exists(root+"/v/volume/file") || !exists(root+"/v/shared/file") {
		t.Error("mounts in the volume went with a pin")
	}
}

// TestUnmountBelow: what is mounted in a volume goes for all that share it, the volume stays.
func TestUnmountBelow(t *testing.T) {
	require.Root(t)
	root := t.TempDir()
	dir := shared(t, root)
	remove, err := PinVolume(dir, root+"/slave", Slave)
	must(t, err)
	t.Cleanup(func() { must(t, remove()) })
	must(t, os.WriteFile(root+"/v/kept", nil, 0o600))
	mountIn(t, root+"/v/m")
	mountIn(t, root+"/v/m/n")
	must(t, os.Symlink(root+"/elsewhere", root+"/v/link"))
	mountIn(t, root+"/elsewhere")
	t.Cleanup(func() { must(t, Unmount(root+"/elsewhere")) })
	must(t, unix.Mount("tmpfs", root+"/v", "tmpfs", 0, ""))
	must(t, unix.Mount("tmpfs", root+"/v", "tmpfs", 0, ""))
	must(t, os.Mkdir(root+"/scratch", 0o700)) // left by a try that failed
	for range 2 {
		must(t, UnmountBelow(dir, root+"/scratch"))
		for path, want := range map[string]bool{
			"/v/kept": true, "/slave/kept": true, "/v/m": true, "/v/m/file": false, "/slave/m/file": false, "/elsewhere/file": true, "/scratch": false,
		} {
			if exists(root+path) != want {
				t.Errorf("%s exists: %t", path, !want)
			}
		}
	}
}

// TestWithin: nothing is reached through a mount in a volume.
func TestWithin(t *testing.T) {
	require.Root(t)
	root := t.TempDir()
	dir := shared(t, root)
	mountIn(t, root+"/v/m")
	if _, err := OpenIn(dir, "m"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("open a mount: %v", err)
	}
	if _, err := OpenIn(dir, "m/file"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("open in a mount: %v", err)
	}
	if made, err := MkdirIn(dir, "m/x", 0o755, 0o755); made || !errdefs.IsFailedPrecondition(err) || exists(root+"/v/m/x") {
		t.Errorf("folder in a mount: %t, %v", made, err)
	}
	if err := ChownIn(dir, "m", 7, 0o777); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("group of a mount: %v", err)
	}
	if _, err := OpenIn(dir, "none"); !errdefs.IsNotFound(err) {
		t.Errorf("open nothing: %v", err)
	}
	must(t, os.Symlink("m", root+"/v/link"))
	if _, err := OpenIn(dir, "link"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("open a link: %v", err)
	}
	made, err := MkdirIn(dir, "a/b", 0o755, 0o711)
	if info, statErr := os.Stat(root + "/v/a/b"); !made || err != nil || statErr != nil || info.Mode().Perm() != 0o711 {
		t.Errorf("folder: %t, %v, %v", made, err, statErr)
	}
}
