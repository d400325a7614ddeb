package integration

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coffer-project/coffer/integration/harness"
)

// TestVolumes gives a pod's containers every kind of volume that the kubelet makes of host files, memory and block devices.
func TestVolumes(t *testing.T) {
	t.Parallel()
	node := sharedNode(t)
	l := newLab(t, node, "coffer", encryptedImage(t, node), func(config *runtime.PodSandboxConfig) {
		config.Linux.SecurityContext.Privileged = true // so that containers may be
	})
	for name, test := range map[string]func(*testing.T, *lab, *kubelet){
		"live":        volumesLive,
		"propagation": volumesPropagation,
		"termination": volumesTermination,
		"empty dirs":  volumesEmptyDir,
		"host paths":  volumesHostPath,
		"refused":     volumesRefused,
		"block":       volumesBlock,
	} {
		t.Run(name, func(t *testing.T) { test(t, l, newKubelet(t)) })
	}
	l.remove(t)
	if err := node.Leftovers(); err != nil {
		t.Error(err)
	}
}

// volumesLive switches a config map under the eyes of a reader that must never see parts of two versions.
func volumesLive(t *testing.T, l *lab, k *kubelet) {
	volume := k.volume(t, "configmap", "settings")
	k.write(t, volume, map[string]string{"a": "0", "b": "0", "gone": "x"})
	single := k.subPath(t, volume, "c", 0, "a")
	c := l.start(t, bind(map[string]string{"ro:/config": volume, "ro:/single": single}), "/bin/sh", "-c", `
		while :; do
			cd -P /config/..data || { echo "no version" >> /bad; continue; }
			a=$(cat a 2> /dev/null) && b=$(cat b 2> /dev/null) || continue
			test "$a" = "$b" || echo "$a and $b" >> /bad
			echo $a > /seen
		done`)
	const versions = 4
	for version := 1; version <= versions; version++ {
		want := fmt.Sprint(version)
		k.write(t, volume, map[string]string{"a": want, "b": want, "new": "y"})
		l.eventually(t, func() error {
			if got := l.sh(t, c, "cat /config/a /seen; test ! -e /config/gone || echo gone"); got != want+want {
				return fmt.Errorf("version %s is %q in the container", want, got)
			}
			return nil
		})
	}
	l.ask(t, c,
		[2]string{"cat /bad 2> /dev/null || echo none", "none"},
		[2]string{"cat /config/new; echo; cat /single", "y\n0"},
		[2]string{"{ echo x > /config/a; } 2> /dev/null || echo ro", "ro"},
		[2]string{"ls -A /config | tr '\\n' ' '", fmt.Sprintf("..2026_11_23_08_00_00.%d ..data a b new ", versions+1)},
	)
}

// eventually repeats a check until it holds.
func (l *lab) eventually(t *testing.T, check func() error) {
	t.Helper()
	if err := harness.Eventually(l.ctx(t), func(context.Context) error { return check() }); err != nil {
		t.Fatal(err)
	}
}

// volumesTermination finds the end of a container's message on the host when its exit is known.
func volumesTermination(t *testing.T, l *lab, k *kubelet) {
	file := k.termination(t, "app")
	hosts := k.file(t, filepath.Join(k.dir, "etc-hosts"), "127.0.0.1 localhost\n", 0o644)
	c := l.start(t, bind(map[string]string{"/dev/termination-log": file, "/etc/hosts": hosts}), "/bin/sh", "-c",
		"echo 10.0.0.1 more >> /etc/hosts && yes 0123456 | head -c 8000 > /dev/termination-log; cat /etc/hosts > /dev/termination-log; "+
			"yes 0123456 | head -c 8000 >> /dev/termination-log; echo the end >> /dev/termination-log; exit 3")
	if status := l.wait(t, c); status.ExitCode != 3 {
		t.Errorf("exit status %d", status.ExitCode)
	}
	message, err := os.ReadFile(file)
	if err != nil || len(message) != 4096 || !strings.HasSuffix(string(message), "0123456\nthe end\n") {
		t.Errorf("message of %d bytes ends with %q, %v", len(message), message[max(0, len(message)-20):], err)
	}
	short := k.termination(t, "short")
	c = l.start(t, bind(map[string]string{"/dev/termination-log": short, "/etc/hosts": hosts}), "/bin/sh", "-c",
		"cat /etc/hosts > /dev/termination-log")
	l.wait(t, c)
	if message, err := os.ReadFile(short); err != nil || string(message) != "127.0.0.1 localhost\n" {
		t.Errorf("message %q, %v: the file that another container has changed is not the host's", message, err)
	}
}

// volumesEmptyDir hands memory from container to container.
func volumesEmptyDir(t *testing.T, l *lab, k *kubelet) {
	memory, disk := k.emptyDir(t, "memory", 2000, 4*mebibyte), k.emptyDir(t, "disk", 0, 0)
	part := k.subPath(t, memory, "main", 0, "inner/part")
	first := l.start(t, bind(map[string]string{"/memory": memory, "/disk": disk}), "/bin/sh", "-c",
		"echo from init > /memory/letter && echo on disk > /disk/letter && mkdir /disk/own && chmod 700 /disk/own")
	if status := l.wait(t, first); status.ExitCode != 0 {
		output, err := first.Output()
		t.Fatalf("init container: status %d, %q, %v", status.ExitCode, output, err)
	}
	l.removeContainer(t, first)
	second := l.sleeper(t, bind(map[string]string{"/memory": memory, "/part": part, "ro:/disk": disk}))
	l.ask(t, second,
		[2]string{"cat /memory/letter /disk/letter", "from init\non disk"},
		[2]string{"stat -c '%a %g' /memory /disk /disk/own | tr '\\n' ' '", "2777 2000 2777 0 700 0 "},
		[2]string{"echo deep > /part/file && cat /memory/inner/part/file", "deep"},
		[2]string{"stat -c '%a %g' /part", "2777 2000"},
		[2]string{"{ echo x > /disk/x; } 2> /dev/null || echo ro", "ro"},
		[2]string{"touch /memory/mine && stat -c %g /memory/mine", "2000"},
		[2]string{"df -k /memory | tail -1 | { read -r _ size _; echo $size; }", "4096"},
		[2]string{"dd if=/dev/zero of=/memory/big bs=1M count=8 2>&1 | grep -c 'No space left'; rm /memory/big", "1"},
	)
	for _, dir := range []string{memory, disk} {
		entries, err := os.ReadDir(dir)
		for _, entry := range entries {
			if entry.Name() != "inner" || err != nil {
				t.Errorf("%s of the host has %s, %v", dir, entry.Name(), err)
			}
		}
	}
}

// volumesHostPath copies folders and files of the host; what a container changes stays in the guest.
func volumesHostPath(t *testing.T, l *lab, k *kubelet) {
	dir := filepath.Join(t.TempDir(), "data")
	file := k.file(t, filepath.Join(dir, "deep/file"), "host", 0o640)
	if err := os.Symlink("/bin/busybox", filepath.Join(dir, "out")); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(file, 1234, 2345); err != nil {
		t.Fatal(err)
	}
	empty := k.mkdir(t, filepath.Join(t.TempDir(), "created"))
	c := l.sleeper(t, bind(map[string]string{"/data": dir, "ro:/again": dir, "/one/file": file, "/created": empty}))
	l.ask(t, c,
		[2]string{"cat /data/deep/file /one/file", "hosthost"},
		[2]string{"stat -c '%a %u %g' /data/deep/file", "640 1234 2345"},
		[2]string{"readlink /data/out; test -x /data/out && echo runs", "/bin/busybox\nruns"},
		[2]string{"echo guest > /data/deep/file && cat /data/deep/file", "guest"},
		[2]string{"cat /again/deep/file", "host"},
		[2]string{"{ echo x > /again/x; } 2> /dev/null || echo ro", "ro"},
		[2]string{"echo x > /created/x && cat /created/x", "x"},
	)
	if got, err := os.ReadFile(file); string(got) != "host" {
		t.Errorf("the host's file is %q, %v", got, err)
	}
	if entries, err := os.ReadDir(empty); err != nil || len(entries) > 0 {
		t.Errorf("the host's folder has %v, %v", entries, err)
	}
}

// volumesRefused asks for what no copy can stand for.
func volumesRefused(t *testing.T, l *lab, k *kubelet) {
	dir := t.TempDir()
	socket := filepath.Join(dir, "socket")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	large := k.file(t, filepath.Join(dir, "large", "file"), "", 0o600)
	if err := os.Truncate(large, 65*mebibyte); err != nil {
		t.Fatal(err)
	}
	claim := k.mkdir(t, filepath.Join(k.volume(t, "csi", "claim"), "mount"))
	for name, tc := range map[string]struct {
		source string
		want   []string
	}{
		"socket":     {socket, []string{socket, "socket", "remove the mount"}},
		"large":      {filepath.Dir(large), []string{"65.0 MiB", "64.0 MiB", "emptyDir", "max_copy_mib"}},
		"persistent": {claim, []string{"kubernetes.io/csi", "would be lost", "read-only"}},
		"kernel":     {"/proc", []string{"the host's kernel (proc)"}},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := l.tryCreate(t, bind(map[string]string{"/x": tc.source}), "/bin/true")
			if err == nil {
				err = c.Start(l.ctx(t))
			}
			if err == nil {
				err = errors.New("it was started")
			}
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q does not say %q", err, want)
				}
			}
		})
	}
	// What was copied for them before they failed is gone, and a read-only claim is no danger.
	c := l.sleeper(t, func(config *runtime.ContainerConfig) { bind(map[string]string{"ro:/claim": claim})(config) })
	l.sh(t, c, "ls /claim")
}
