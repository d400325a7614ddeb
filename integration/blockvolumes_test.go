package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coffer-project/coffer/integration/harness"
	"github.com/coffer-project/coffer/integration/require"
)

// volumesBlock hands block devices of the node to containers, several of them to several containers.
func volumesBlock(t *testing.T, l *lab, _ *kubelet) {
	data, shared := loopDevice(t, "data on the node", 4*mebibyte), loopDevice(t, "for two readers.", 2*mebibyte)
	volumes := func(devices ...*runtime.Device) func(*runtime.ContainerConfig) {
		return func(config *runtime.ContainerConfig) { config.Devices = devices }
	}
	writer := l.sleeper(t, volumes(
		&runtime.Device{HostPath: data.device, ContainerPath: "/dev/xvda", Permissions: "mrw"},
		&runtime.Device{HostPath: shared.device, ContainerPath: "/dev/block/shared", Permissions: "mr"},
	))
	reader := l.sleeper(t, volumes(&runtime.Device{HostPath: shared.device, ContainerPath: "/dev/xvda", Permissions: "r"}))

	t.Run("read", func(t *testing.T) {
		for _, tc := range []struct {
			got, want string
		}{
			{l.sh(t, writer, "head -c 16 /dev/xvda"), "data on the node"},
			{l.sh(t, writer, "head -c 16 /dev/block/shared"), "for two readers."},
			{l.sh(t, reader, "head -c 16 /dev/xvda"), "for two readers."},
			{l.sh(t, writer, "test -b /dev/xvda && wc -c < /dev/xvda"), fmt.Sprint(4 * mebibyte)},
		} {
			if tc.got != tc.want {
				t.Errorf("got %q, want %q", tc.got, tc.want)
			}
		}
	})
	t.Run("write", func(t *testing.T) {
		l.sh(t, writer, "printf 'WRITTEN IN GUEST' | dd of=/dev/xvda conv=notrunc,fsync 2>/dev/null")
		if got := data.head(t); got != "WRITTEN IN GUEST" {
			t.Errorf("the node's device begins with %q", got)
		}
		for _, tc := range []struct {
			who  *harness.Container
			path string
		}{{writer, "/dev/block/shared"}, {reader, "/dev/xvda"}} {
			got := l.sh(t, tc.who, "printf x | dd of="+tc.path+" conv=notrunc,fsync 2>/dev/null && echo written || echo refused")
			if got != "refused" {
				t.Errorf("%s in container %s was %s", tc.path, tc.who.ID, got)
			}
		}
		if got := shared.head(t); got != "for two readers." {
			t.Errorf("the read-only device begins with %q", got)
		}
	})
	t.Run("others", func(t *testing.T) {
		// A container that was given no device cannot make itself one, whatever number it tries.
		l.compare(t, nil, map[string]string{"while read -r n name; do test \"$name\" = virtblk && major=$n; done < /proc/devices; " +
			"for minor in 0 16 32 48; do mknod /tmp/d$minor b $major $minor || echo no node; " +
			"head -c 1 /tmp/d$minor 2>/dev/null && echo read; done; test -n \"$major\"": ""})
	})
	t.Run("removal", func(t *testing.T) {
		l.removeContainer(t, writer)
		if got := l.sh(t, reader, "head -c 16 /dev/xvda"); got != "for two readers." {
			t.Errorf("after the other container's end the reader reads %q", got)
		}
		data.detach(t)
		l.removeContainer(t, reader)
		shared.detach(t)
	})
	t.Run("gone", func(t *testing.T) {
		_, err := l.tryCreate(t, volumes(&runtime.Device{HostPath: "/dev/coffer-no-such-device", ContainerPath: "/dev/x", Permissions: "mrw"}))
		if err == nil || !strings.Contains(err.Error(), "coffer-no-such-device") {
			t.Errorf("a device that the node does not have: %v", err)
		}
	})
}

// loop is a block device of the node with a file behind it.
type loop struct{ device, image string }

// loopDevice makes one that begins with text.
func loopDevice(t *testing.T, text string, size int) *loop {
	t.Helper()
	require.Program(t, "losetup", "install Debian's package mount")
	image := filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(image, append([]byte(text), make([]byte, size-len(text))...), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "--find", "--show", image).CombinedOutput()
	if err != nil {
		require.Missing(t, fmt.Sprintf("a free loop device: %v: %s", err, out))
	}
	l := &loop{device: strings.TrimSpace(string(out)), image: image}
	t.Cleanup(func() {
		if l.device != "" {
			l.detach(t)
		}
	})
	return l
}

// head is what the device's file begins with.
func (l *loop) head(t *testing.T) string {
	t.Helper()
	raw, err := os.ReadFile(l.image)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw[:16])
}

// detach gives the device back. It fails when somebody has it open: then the kernel only notes it for later.
func (l *loop) detach(t *testing.T) {
	t.Helper()
	if out, err := exec.Command("losetup", "--detach", l.device).CombinedOutput(); err != nil {
		t.Errorf("detach %s: %v: %s", l.device, err, out)
	}
	if _, err := os.Stat(filepath.Join("/sys/block", filepath.Base(l.device), "loop")); err == nil {
		t.Errorf("%s is still in use", l.device)
	}
	l.device = ""
}
