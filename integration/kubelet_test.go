package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// kubelet lays a pod's volumes out on the host as the kubelet does.
type kubelet struct {
	dir      string // of the pod
	versions int
}

func newKubelet(t *testing.T) *kubelet {
	t.Helper()
	k := &kubelet{dir: filepath.Join(t.TempDir(), "pods", "8f1d6b0c-0000-4000-8000-000000000000")}
	k.mkdir(t, k.dir)
	return k
}

func (k *kubelet) mkdir(t *testing.T, path string) string {
	t.Helper()
	if err := os.MkdirAll(path, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func (k *kubelet) file(t *testing.T, path, content string, mode os.FileMode) string {
	t.Helper()
	k.mkdir(t, filepath.Dir(path))
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	return path
}

// volume is the folder of a volume that a plugin such as configmap makes.
func (k *kubelet) volume(t *testing.T, plugin, name string) string {
	t.Helper()
	return k.mkdir(t, filepath.Join(k.dir, "volumes", "kubernetes.io~"+plugin, name))
}

// write switches a volume to new content, in one step for readers.
func (k *kubelet) write(t *testing.T, volume string, content map[string]string) {
	t.Helper()
	k.versions++
	version := "..2026_11_23_08_00_00." + strconv.Itoa(k.versions)
	for key, value := range content {
		k.file(t, filepath.Join(volume, version, key), value, 0o644)
	}
	old, _ := os.Readlink(filepath.Join(volume, "..data")) // the first version has none before it
	link := func(target, name string) {
		t.Helper()
		if err := os.Symlink(target, name); err != nil {
			t.Fatal(err)
		}
	}
	link(version, filepath.Join(volume, "..data_tmp"))
	if err := os.Rename(filepath.Join(volume, "..data_tmp"), filepath.Join(volume, "..data")); err != nil {
		t.Fatal(err)
	}
	for key := range content {
		if _, err := os.Lstat(filepath.Join(volume, key)); err != nil {
			link(filepath.Join("..data", key), filepath.Join(volume, key))
		}
	}
	entries, err := os.ReadDir(volume)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		if _, wanted := content[entry.Name()]; !wanted && !strings.HasPrefix(entry.Name(), "..") {
			if err := os.Remove(filepath.Join(volume, entry.Name())); err != nil {
				t.Fatal(err)
			}
		}
	}
	if old != "" {
		if err := os.RemoveAll(filepath.Join(volume, old)); err != nil {
			t.Fatal(err)
		}
	}
}

// emptyDir makes an emptyDir of the pod's fsGroup; with a size it has the medium Memory.
func (k *kubelet) emptyDir(t *testing.T, name string, group int, size int64) string {
	t.Helper()
	dir := k.volume(t, "empty-dir", name)
	if size > 0 {
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
			t.Fatal(err)
		}
		k.unmountLater(t, dir)
	}
	if err := os.Chown(dir, 0, group); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o777|os.ModeSetgid); err != nil {
		t.Fatal(err)
	}
	return dir
}

// subPath gives a container a part of a volume.
func (k *kubelet) subPath(t *testing.T, volume, container string, index int, sub string) string {
	t.Helper()
	source := filepath.Join(volume, sub)
	at := filepath.Join(k.dir, "volume-subpaths", filepath.Base(volume), container, strconv.Itoa(index))
	if info, err := os.Stat(source); err == nil && !info.IsDir() {
		k.file(t, at, "", 0o644)
	} else {
		k.mkdir(t, source)
		if err := os.Chmod(source, 0o777); err != nil {
			t.Fatal(err)
		}
		k.mkdir(t, at)
	}
	if err := unix.Mount(source, at, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	k.unmountLater(t, at)
	return at
}

func (k *kubelet) unmountLater(t *testing.T, path string) {
	t.Helper()
	t.Cleanup(func() {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

// termination makes the file for a container's last message.
func (k *kubelet) termination(t *testing.T, container string) string {
	t.Helper()
	return k.file(t, filepath.Join(k.dir, "containers", container, "5c0a1b2d"), "", 0o666)
}

// bind mounts a path of the host, read-only when the container's path begins with "ro:".
func bind(paths map[string]string) func(*runtime.ContainerConfig) {
	return func(config *runtime.ContainerConfig) {
		for at, source := range paths {
			at, readonly := strings.CutPrefix(at, "ro:")
			config.Mounts = append(config.Mounts, &runtime.Mount{ContainerPath: at, HostPath: source, Readonly: readonly})
		}
	}
}
