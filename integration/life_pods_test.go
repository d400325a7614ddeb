package integration

import (
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coffer-project/coffer/integration/harness"
)

// TestTwoPods runs two pods side by side: one whose containers share their processes, and one that talks to it. The sandbox
// of the second is one that containerd makes itself, by a pause image. That comes through the snapshotter as an ordinary
// image; nothing of it runs.
func TestTwoPods(t *testing.T) {
	t.Parallel()
	node := sharedNode(t)
	sharing := newLab(t, node, "coffer", encryptedImage(t, node), func(config *runtime.PodSandboxConfig) {
		config.Metadata.Name += "-sharing"
		config.Linux.SecurityContext.NamespaceOptions = &runtime.NamespaceOption{Pid: runtime.NamespaceMode_POD}
	})
	mark, err := node.HTTP.Mark()
	if err != nil {
		t.Fatal(err)
	}
	other := newLab(t, node, "coffer-podsandbox", encryptedImage(t, node), func(config *runtime.PodSandboxConfig) {
		config.Hostname = "with-pause"
	})

	t.Run("sandbox by containerd", func(t *testing.T) {
		if !exists(t, other, harness.PauseImage) {
			t.Error("the pause image was not pulled")
		}
		checkPulledInGuest(t, other, mark)
		runsAsUsual(t, other)
	})
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
	for name, pods := range map[string][2]*lab{"from the second to the first": {other, sharing}, "from the first to the second": {sharing, other}} {
		t.Run(name, func(t *testing.T) { testTalk(t, pods[0], pods[1]) })
	}
}

// testTalk lets a container of one pod ask a server in the other.
func testTalk(t *testing.T, from, to *lab) {
	server := to.start(t, nil, "/bin/busybox", "nc", "-l", "-p", "8080", "-e", "/bin/echo", "hello")
	client := from.sleeper(t, nil)
	// The server needs a moment to listen.
	script := "for i in $(seq 100); do busybox nc " + to.pod.IP + " 8080 </dev/null 2>/dev/null && exit; sleep 0.1; done; exit 1"
	if got := from.sh(t, client, script); got != "hello" {
		t.Errorf("the other pod says %q", got)
	}
	if status := to.wait(t, server); status.ExitCode != 0 {
		t.Errorf("server: exit status %d", status.ExitCode)
	}
}
