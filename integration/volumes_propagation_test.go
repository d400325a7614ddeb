package integration

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coffer-project/coffer/integration/harness"
)

// volumesPropagation has a sidecar mount a file system in an emptyDir, as drivers of storage do, for a container that asks for it.
func volumesPropagation(t *testing.T, l *lab, k *kubelet) {
	volume := k.emptyDir(t, "mounts", 0, 4*mebibyte)
	// containerd wants this of the node's own mount, where nothing ever appears.
	if err := unix.Mount("", volume, "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	member := func(propagation runtime.MountPropagation, privileged bool) func(*runtime.ContainerConfig) {
		return func(config *runtime.ContainerConfig) {
			config.Linux.SecurityContext.Privileged = privileged
			config.Mounts = []*runtime.Mount{{ContainerPath: "/v", HostPath: volume, Propagation: propagation}}
		}
	}
	const look = "cat /v/m/file 2> /dev/null || echo none"
	sidecar := member(runtime.MountPropagation_PROPAGATION_BIDIRECTIONAL, true)
	main := l.sleeper(t, member(runtime.MountPropagation_PROPAGATION_HOST_TO_CONTAINER, false))
	private := l.sleeper(t, member(runtime.MountPropagation_PROPAGATION_PRIVATE, false))
	const mount = "busybox mkdir -p /v/m && mount -t tmpfs none /v/m && echo mounted > /v/m/file"
	for _, run := range []string{"first", "again"} {
		c := l.start(t, sidecar, "/bin/sh", "-c", mount+" && echo ready && sleep 100000")
		l.says(t, c, "ready")
		l.ask(t, main, [2]string{look, "mounted"})
		l.ask(t, private, [2]string{look, "none"})
		if run == "first" {
			l.sh(t, c, "busybox umount /v/m")
			l.ask(t, main, [2]string{look, "none"})
			l.sh(t, c, mount)
			l.ask(t, main, [2]string{look, "mounted"})
		}
		l.removeContainer(t, c)
		for _, left := range []*harness.Container{main, private} {
			l.ask(t, left, [2]string{look, "none"}, [2]string{"ls /v", "m"})
		}
	}
	// Only who may mount may pass mounts on.
	c, err := l.tryCreate(t, member(runtime.MountPropagation_PROPAGATION_BIDIRECTIONAL, false), "/bin/true")
	if err == nil {
		err = c.Start(l.ctx(t))
	}
	if err == nil || !strings.Contains(err.Error(), "CAP_SYS_ADMIN") {
		t.Errorf("a container without privileges shares its mounts: %v", err)
	}
}
