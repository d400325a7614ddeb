package integration

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/integration/harness"
)

// TestPauseImage makes pods of runc and pods with a sandbox of containerd's under Coffer's handler from one pause image.
// containerd pulls it once, for whichever comes first, and each way works with the snapshotter's default configuration.
func TestPauseImage(t *testing.T) {
	t.Parallel()
	for name, options := range map[string]harness.Options{
		"handler": {}, "default": {NodeDefault: true, LocalPull: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := &matrix{node: ownNode(t, options), mode: "handler"}
			if options.NodeDefault {
				m.mode = "default"
			}
			before := m.snapshots(t)

			guest := m.pausePod(t, "coffer-podsandbox")
			m.runPause(t, guest)
			m.restart(t)
			host := m.pausePod(t, "")
			m.runPause(t, host)
			m.forgetPause(t, before, guest, host)
			if options.LocalPull {
				m.checkLocalPull(t)
				return // the other order does not depend on how images are pulled
			}
			host = m.pausePod(t, "")
			guest = m.pausePod(t, "coffer-podsandbox")
			m.runPause(t, guest)
			m.forgetPause(t, before, guest, host)
		})
	}
}

// pausePod runs a pod under a handler; the empty name is runc.
func (m *matrix) pausePod(t *testing.T, handler string) *harness.Pod {
	t.Helper()
	annotations, err := m.node.PodAnnotations(harness.Guest{PlainRegistries: []string{m.node.HTTP.Host}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), criTimeout)
	defer cancel()
	m.serial++
	pod, err := m.node.CRI.RunPod(ctx, handler, m.node.CRI.PodConfig(fmt.Sprintf("pause-%d", m.serial), annotations))
	if err != nil {
		t.Fatalf("run a pod by handler %q: %v", handler, err)
	}
	return pod
}

// runPause runs the pause image as an ordinary one, with a command of its own.
func (m *matrix) runPause(t *testing.T, pod *harness.Pod) {
	t.Helper()
	output, err := m.try(t, pod, harness.PauseImage, "/bin/tail", "-n", "1", "/pause")
	if err != nil || strings.TrimSpace(output) != harness.PauseScript {
		t.Errorf("a container of the pause image by handler %q printed %q, %v", pod.Handler, output, err)
	}
}

// forgetPause removes the pods and the image, and waits until nothing of it is left.
func (m *matrix) forgetPause(t *testing.T, before map[string]int, pods ...*harness.Pod) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), criTimeout)
	defer cancel()
	for _, pod := range pods {
		if err := pod.Remove(ctx); err != nil {
			t.Fatal(err)
		}
	}
	m.removeImage(t, harness.PauseImage)
	m.awaitSnapshots(t, before)
}
