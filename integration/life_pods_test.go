package integration

import (
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestTwoPods runs two pods side by side: one whose containers share their processes, and one that talks to it.
func TestTwoPods(t *testing.T) {
	node := sharedNode(t)
	image := encryptedImage(t, node)
	sharing := newLab(t, node, "coffer", image, func(config *runtime.PodSandboxConfig) {
		config.Metadata.Name += "-sharing"
		config.Linux.SecurityContext.NamespaceOptions = &runtime.NamespaceOption{Pid: runtime.NamespaceMode_POD}
	})
	other := newLab(t, node, "coffer", image, nil)

	t.Run("shared processes", func(t *testing.T) {
		first := sharing.start(t, nil, "/bin/sleep", "1111")
		second := sharing.start(t, nil, "/bin/sleep", "2222")
		for _, c := range []string{sharing.sh(t, first, "ps -o args"), sharing.sh(t, second, "ps -o args")} {
			if !strings.Contains(c, "sleep 1111") || !strings.Contains(c, "sleep 2222") {
				t.Errorf("the containers do not see each other's processes:\n%s", c)
			}
		}
		// A signal reaches the neighbour, whose exit is its own.
		sharing.sh(t, first, "ps -o pid,args | while read -r pid args; do test \"$args\" = '/bin/sleep 2222' && kill -TERM $pid; done; true")
		if status := sharing.wait(t, second); status.ExitCode != 143 {
			t.Errorf("exit status %d, want 143", status.ExitCode)
		}
		sharing.sh(t, first, "true")
	})
	t.Run("network", func(t *testing.T) {
		server := sharing.start(t, nil, "/bin/busybox", "nc", "-l", "-p", "8080", "-e", "/bin/echo", "hello")
		client := other.sleeper(t, nil)
		// The server needs a moment to listen.
		script := "for i in $(seq 100); do busybox nc " + sharing.pod.IP + " 8080 </dev/null 2>/dev/null && exit; sleep 0.1; done; exit 1"
		if got := other.sh(t, client, script); got != "hello" {
			t.Errorf("the other pod says %q", got)
		}
		if status := sharing.wait(t, server); status.ExitCode != 0 {
			t.Errorf("server: exit status %d", status.ExitCode)
		}
	})
}
