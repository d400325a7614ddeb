package doctor

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	shim "github.com/coffer-project/coffer/shim/config"
	"github.com/coffer-project/coffer/shim/tee"
)

// fakeHost is a node of files and programs that a test writes down. Devices are files that can be opened.
type fakeHost struct {
	files    fstest.MapFS
	programs map[string]string // a command line, and what it prints; "!" in front makes it fail
}

func (f *fakeHost) put(path, content string) {
	f.files[strings.TrimPrefix(path, "/")] = &fstest.MapFile{Data: []byte(content)}
}

func (f *fakeHost) drop(path string) { delete(f.files, strings.TrimPrefix(path, "/")) }

func (f *fakeHost) ReadFile(path string) ([]byte, error) {
	return f.files.ReadFile(strings.TrimPrefix(path, "/"))
}

func (f *fakeHost) Stat(path string) (fs.FileInfo, error) {
	return f.files.Stat(strings.TrimPrefix(path, "/"))
}

func (f *fakeHost) Glob(pattern string) ([]string, error) {
	return f.files.Glob(strings.TrimPrefix(pattern, "/"))
}

func (f *fakeHost) Open(path string) error {
	_, err := f.Stat(path)
	return err
}

func (f *fakeHost) Run(_ context.Context, name string, args ...string) (string, error) {
	line := strings.Join(append([]string{name}, args...), " ")
	text, ok := f.programs[line]
	switch {
	case !ok:
		return "", fmt.Errorf("%s: %w", line, fs.ErrNotExist)
	case strings.HasPrefix(text, "!"):
		return text[1:], errors.New("exit status 3")
	}
	return text, nil
}

// containerd is a complete configuration, as containerd dumps it.
const containerd = `version = 4
[plugins.'io.containerd.cri.v1.images']
  use_local_image_pull = false
  snapshotter = 'overlayfs'
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = 'io.containerd.runc.v2'
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.coffer]
  runtime_type = 'io.containerd.coffer.v2'
  snapshotter = 'coffer'
  sandboxer = 'shim'
  disable_pause_image_pull = true
  pod_annotations = ['io.katacontainers.*']
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.coffer.options]
    ConfigPath = '/etc/coffer/shim.toml'
[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]
  platform = 'linux/amd64'
  snapshotter = 'overlayfs'
[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]
  platform = 'linux/amd64'
  snapshotter = 'coffer'
[proxy_plugins.coffer]
  type = 'snapshot'
  address = '/run/coffer-snapshotter/snapshotter.sock'
  capabilities = ['remap-ids']
  [proxy_plugins.coffer.exports]
    enable_remote_snapshot_annotations = 'true'
    root = '/var/lib/coffer-snapshotter'
`

// node is what a test examines, and may break first.
type node struct {
	*Examination
	host *fakeHost
	// shimText and snapshotterText become the configuration files.
	shimText, snapshotterText string
}

// healthy is a node without a fault.
func healthy() *node {
	host := &fakeHost{files: fstest.MapFS{}, programs: map[string]string{
		"/usr/bin/qemu-system-x86_64 --version":           "QEMU emulator version 10.1.2 (Debian)\n",
		"/usr/bin/qemu-system-x86_64 -device help":        "name \"virtio-net-pci\"\nname \"virtio-blk-pci\"\nname \"vhost-vsock-pci\"\nname \"virtserialport\"\n",
		"/usr/bin/qemu-system-x86_64 -object help":        "  iommufd\n  sev-snp-guest\n  tdx-guest\n",
		"containerd --version":                            "containerd github.com/containerd/containerd/v2 v2.4.2 abc\n",
		"containerd config dump":                          containerd,
		"containerd-shim-coffer-v2 -v":                    "containerd-shim-coffer-v2:\n",
		"systemctl cat coffer-snapshotter.service":        "[Unit]\n",
		"systemctl is-active coffer-snapshotter.service":  "active\n",
		"systemctl is-enabled coffer-snapshotter.service": "enabled\n",
	}}
	part := func(name, content string) string {
		host.put("/usr/share/coffer/guest/"+name, content)
		return fmt.Sprintf(`{"name":%q,"sha256":"%x"}`, name, sha256.Sum256([]byte(content)))
	}
	host.put("/usr/share/coffer/guest/manifest.json", fmt.Sprintf(`{"files":[%s,%s]}`, part("vmlinux", "kernel"), part("initrd.cpio", "initrd")))
	host.put("/proc/meminfo", "MemTotal: 33554432 kB\nMemAvailable:   16777216 kB\nHugePages_Total:       0\n")
	host.put("/proc/sys/fs/inotify/max_user_instances", "8192\n")
	host.put("/proc/filesystems", "nodev\toverlay\n\text4\n")
	for _, path := range []string{"/dev/vhost-vsock", "/dev/net/tun", "/sys/fs/cgroup/cgroup.controllers", "/etc/coffer/shim.toml", "/run/systemd/system/x", "/run/containerd/containerd.sock"} {
		host.put(path, "")
	}
	return &node{host: host, Examination: &Examination{Host: host, Probes: Probes{
		Boot:         func(context.Context, *shim.Config) (string, string, error) { return "kvm", "", nil },
		Snapshotter:  func(context.Context, string) error { return nil },
		Network:      func(context.Context) error { return nil },
		Broker:       func(context.Context, string, string) error { return nil },
		Synchronised: func() (bool, error) { return true, nil },
		SEV:          func() tee.SEV { return tee.SEV{SNP: true, CBitPos: 51} },
		Orphans:      func(context.Context, string) (int, error) { return 0, nil },
	}}}
}

// examine writes the configuration files and runs all checks.
func (n *node) examine(t *testing.T) []Finding {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"shim.toml": n.shimText, "snapshotter.toml": n.snapshotterText} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	n.Paths.Shim, n.Paths.Snapshotter = filepath.Join(dir, "shim.toml"), filepath.Join(dir, "snapshotter.toml")
	// The file that was examined is the one that the handler names.
	n.host.put(n.Paths.Shim, n.shimText)
	for line, text := range n.host.programs {
		n.host.programs[line] = strings.ReplaceAll(text, "'/etc/coffer/shim.toml'", "'"+n.Paths.Shim+"'")
	}
	return n.Run(t.Context())
}

func asJSON(t *testing.T, findings []Finding) string {
	t.Helper()
	raw, err := json.MarshalIndent(findings, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}
