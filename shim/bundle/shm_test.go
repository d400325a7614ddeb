package bundle

import (
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// TestSharedMemory: who asks for what at /dev/shm, and what is there in the guest.
func TestSharedMemory(t *testing.T) {
	emptyDir := specs.Mount{
		Destination: "/dev/shm", Type: "bind", Source: "/var/lib/kubelet/pods/p/volumes/kubernetes.io~empty-dir/big", Options: []string{"rbind"},
	}
	sandbox := specs.Mount{Destination: "/dev/shm", Type: "bind", Source: "/run/containerd/sandboxes/p/shm", Options: []string{"rbind"}}
	own := specs.Mount{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"size=128m"}}
	for name, tc := range map[string]struct {
		mount        specs.Mount
		shared       bool
		source, kind string
	}{
		"default of a pod's container": {own, true, guestShm, "bind"},
		"sandbox of containerd":        {sandbox, true, guestShm, "bind"},
		"larger one as a volume":       {emptyDir, true, guestEphemeral + "/big", "bind"},
		"no pod":                       {own, false, "tmpfs", "tmpfs"},
		"bind without a pod":           {sandbox, false, "tmpfs", "tmpfs"},
		"volume without a pod":         {emptyDir, false, guestEphemeral + "/big", "bind"},
	} {
		t.Run(name, func(t *testing.T) {
			plan, err := (&planner{
				containerID: "c", sharedShm: tc.shared, copy: hostFiles, host: fakeHost{}, emptyDirs: new(EmptyDirs), dropped: new(dropped),
			}).run([]specs.Mount{tc.mount})
			if err != nil {
				t.Fatal(err)
			}
			if len(plan.mounts) != 1 || plan.mounts[0].GetSource() != tc.source || plan.mounts[0].GetType() != tc.kind {
				t.Errorf("mounts %v, want one of %s (%s)", plan.mounts, tc.source, tc.kind)
			}
		})
	}
}
