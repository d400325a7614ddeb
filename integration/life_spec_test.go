package integration

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coffer-project/coffer/integration/harness"
)

// compare checks what scripts say in one container: the answers by script.
func (l *lab) compare(t *testing.T, edit func(*runtime.ContainerConfig), answers map[string]string) {
	t.Helper()
	c := l.sleeper(t, edit)
	l.answer(t, c, answers)
	l.removeContainer(t, c)
}

// answer checks what scripts say in a container: the answers by script.
func (l *lab) answer(t *testing.T, c *harness.Container, answers map[string]string) {
	t.Helper()
	var pairs [][2]string
	for _, script := range slices.Sorted(maps.Keys(answers)) {
		pairs = append(pairs, [2]string{script, answers[script]})
	}
	l.ask(t, c, pairs...)
}

// ask runs scripts in order and checks what each says. They run in one exec, which takes long enough under emulation.
func (l *lab) ask(t *testing.T, c *harness.Container, pairs ...[2]string) {
	t.Helper()
	const separator = "\036"
	var all strings.Builder
	for _, pair := range pairs {
		all.WriteString("( " + pair[0] + "\n) || echo failed; printf '\\036'\n")
	}
	said := strings.Split(l.sh(t, c, all.String()), separator)
	if len(said) != len(pairs)+1 {
		t.Fatalf("%d answers to %d scripts: %q", len(said)-1, len(pairs), said)
	}
	for i, pair := range pairs {
		if got := strings.TrimSuffix(said[i], "\n"); got != pair[1] {
			t.Errorf("%s: %q, want %q", pair[0], got, pair[1])
		}
	}
}

// lifeProcess checks who and where a container's first process and its execs are.
func lifeProcess(t *testing.T, l *lab) {
	t.Run("defaults", func(t *testing.T) {
		l.compare(t, nil, map[string]string{
			"id -u; id -g": "0\n0", "pwd": "/", "hostname": "lively", "echo $PATH": "/bin", "echo $HOSTNAME": "lively",
			// The container sees its own processes alone, and runs on the guest's kernel and memory.
			"ps -o pid,args | head -2": "PID   COMMAND\n    1 /bin/sleep 100000",
		})
	})
	t.Run("numeric user", func(t *testing.T) {
		l.compare(t, func(config *runtime.ContainerConfig) {
			config.WorkingDir = "/tmp"
			config.Envs = []*runtime.KeyValue{{Key: "GREETING", Value: []byte("hello $world = 'x'")}, {Key: "EMPTY"}}
			security := config.Linux.SecurityContext
			security.RunAsUser, security.RunAsGroup = &runtime.Int64Value{Value: 1234}, &runtime.Int64Value{Value: 2345}
			security.SupplementalGroups = []int64{3456}
		}, map[string]string{
			"id -u; id -g; id -G": "1234\n2345\n2345 3456", "pwd": "/tmp",
			"echo \"$GREETING\"": "hello $world = 'x'", "echo ${EMPTY-unset}.": ".",
			statusOf("Uid"): "1234 1234 1234 1234", statusOf("Gid"): "2345 2345 2345 2345",
			"touch mine && ls -ln mine | head -c 34": "-rw-r--r--    1 1234     2345     ",
		})
	})
}

// lifePodFiles checks what the pod's configuration becomes in its containers.
func lifePodFiles(t *testing.T, l *lab) {
	c := l.sleeper(t, nil)
	for script, want := range map[string]string{
		"cat /etc/hostname":    "lively",
		"cat /etc/resolv.conf": "search coffer.test\nnameserver 10.88.0.1\noptions ndots:3",
	} {
		if got := l.sh(t, c, script); got != want {
			t.Errorf("%s: %q, want %q", script, got, want)
		}
	}
	hosts := strings.Split(l.sh(t, c, "cat /etc/hosts"), "\n")
	for _, want := range []string{"127.0.0.1\tlocalhost", l.pod.IP + "\tlively"} {
		if !slices.Contains(hosts, want) {
			t.Errorf("/etc/hosts lacks %q: %q", want, hosts)
		}
	}
}

// lifeFileSystems checks what a container may write to, and what it shares with the others.
func lifeFileSystems(t *testing.T, l *lab) {
	t.Run("writable root", func(t *testing.T) {
		l.compare(t, nil, map[string]string{
			"echo x > /new && cat /new": "x",
			"head -c 8 /etc/passwd; echo x >> /etc/passwd && head -c 8 /etc/passwd": "root:x:0root:x:0",
		})
		// Another container of the same image starts from the image.
		l.compare(t, nil, map[string]string{"test -e /new || echo clean": "clean", "wc -l < /etc/passwd": "2"})
	})
	t.Run("read-only root", func(t *testing.T) {
		l.compare(t, func(config *runtime.ContainerConfig) { config.Linux.SecurityContext.ReadonlyRootfs = true }, map[string]string{
			"touch /new 2>&1 || true":                   "touch: /new: Read-only file system",
			"echo x > /dev/shm/x && cat /dev/shm/x":     "x",
			"echo x > /sys/fs/cgroup/x 2>&1 || echo no": "no",
		})
	})
	t.Run("shared", func(t *testing.T) {
		first, second := l.sleeper(t, nil), l.sleeper(t, nil)
		l.sh(t, first, "echo hello > /dev/shm/letter")
		if got := l.sh(t, second, "cat /dev/shm/letter"); got != "hello" {
			t.Errorf("the other container reads %q", got)
		}
		const spaces = "for n in net ipc uts pid mnt cgroup; do busybox readlink /proc/1/ns/$n; done"
		ours, theirs := strings.Fields(l.sh(t, first, spaces)), strings.Fields(l.sh(t, second, spaces))
		for i, want := range []bool{true, true, true, false, false, false} {
			if same := ours[i] == theirs[i]; same != want {
				t.Errorf("namespaces %s and %s: shared %t, want %t", ours[i], theirs[i], same, want)
			}
		}
	})
}

// lifeVolumes hands files of the host to a container, and memory that the pod's containers share.
func lifeVolumes(t *testing.T, l *lab) {
	// An emptyDir is known by the kubelet's path.
	dir := t.TempDir()
	empty := filepath.Join(dir, "kubernetes.io~empty-dir", "scratch")
	config := filepath.Join(dir, "config")
	for _, path := range []string{empty, config} {
		if err := os.MkdirAll(path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(config, "setting"), []byte("value"), 0o644); err != nil {
		t.Fatal(err)
	}
	mounts := func(c *runtime.ContainerConfig) {
		c.Mounts = []*runtime.Mount{
			{ContainerPath: "/config", HostPath: config, Readonly: true}, {ContainerPath: "/scratch", HostPath: empty},
		}
	}
	first, second := l.sleeper(t, mounts), l.sleeper(t, mounts)
	for script, want := range map[string]string{
		"cat /config/setting": "value",
		"{ echo x > /config/setting; } 2>/dev/null || echo no":                                    "no",
		"echo hello > /scratch/letter && echo ok":                                                 "ok",
		"mount | while read -r _ _ at _ type _; do test $at = /scratch && echo $type; done; true": "tmpfs",
	} {
		if got := l.sh(t, first, script); got != want {
			t.Errorf("%s: %q, want %q", script, got, want)
		}
	}
	if got := l.sh(t, second, "cat /scratch/letter"); got != "hello" {
		t.Errorf("the other container reads %q from the shared volume", got)
	}
	if entries, err := os.ReadDir(empty); err != nil || len(entries) != 0 {
		t.Errorf("the volume in memory has reached the host: %v, %v", entries, err)
	}
	t.Run("device", func(t *testing.T) {
		err := l.create(t, func(c *runtime.ContainerConfig) {
			c.Mounts = []*runtime.Mount{{ContainerPath: "/dev/kmsg2", HostPath: "/dev/null"}}
		}, "/bin/true").Start(l.ctx(t))
		if err == nil || !strings.Contains(err.Error(), "/dev/null is a device") {
			t.Errorf("got %v, want an error about the device", err)
		}
	})
}

// lifeNetwork reaches the node's network from the pod.
func lifeNetwork(t *testing.T, l *lab) {
	l.compare(t, nil, map[string]string{
		"wget -q -O - " + l.node.HTTP.URL() + "/v2/":                                               "{}",
		"ip -4 -o addr show dev eth0 | while read -r _ _ _ address _; do echo ${address%/*}; done": l.pod.IP,
	})
}
