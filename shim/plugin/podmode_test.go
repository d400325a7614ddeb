package plugin

import (
	"testing"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"

	agentpb "github.com/coffer-project/coffer/proto/agent"
)

const (
	typeKey    = "io.kubernetes.cri.container-type"
	sandboxKey = "io.kubernetes.cri.sandbox-id"
)

// runPause makes a pod as containerd's podsandbox controller does: by a task of the pause image.
func (h *harness) runPause() {
	h.t.Helper()
	must(h.t, h.create(podID, stdioPaths{}, map[string]string{typeKey: "sandbox", sandboxKey: podID}))
	must(h.t, h.start(podID, ""))
}

func (h *harness) shutdownTask(id string) {
	h.t.Helper()
	_, err := h.tasks.Shutdown(h.ctx, &taskapi.ShutdownRequest{ID: id})
	must(h.t, err)
}

func TestPauseTask(t *testing.T) {
	h := newHarness(t)
	h.runPause()
	if n := len(h.guest.Calls("CreateContainer")); n != 0 {
		t.Errorf("the guest was asked for %d pause containers", n)
	}
	sandbox := h.guest.Calls("CreateSandbox")[0].Request.(*agentpb.CreateSandboxRequest)
	if sandbox.GetHostname() != "spec-host" || !sandbox.GetSandboxPidns() {
		t.Errorf("sandbox is %v", sandbox)
	}
	if n := len(h.guest.Calls("CopyFile")); n != 0 {
		t.Errorf("%d files were copied; containerd mounts its own into the containers", n)
	}
	must(t, h.create("c1", stdioPaths{}, map[string]string{typeKey: "container", sandboxKey: podID}))
	must(t, h.start("c1", ""))
	h.process("c1", "").Exit(0)
	h.wait("c1", "")
	must(t, h.delete("c1", ""))
	h.shutdownTask("c1")
	state, err := h.tasks.State(h.ctx, &taskapi.StateRequest{ID: podID})
	must(t, err)
	if state.GetStatus().String() != "RUNNING" || state.GetPid() == 0 {
		t.Errorf("pause task is %s with pid %d", state.GetStatus(), state.GetPid())
	}
	if err := h.exec(podID, "e1", stdioPaths{}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("exec in the pause task: %v", err)
	}
	must(t, h.kill(podID, "", 15))
	if got := h.wait(podID, ""); got != 137 {
		t.Errorf("pause task exited with %d, want 137", got)
	}
	h.checkNothingLeft()
	must(t, h.delete(podID, ""))
	h.shutdownTask(podID)
	h.await("shim to end", h.end.Done())
	h.events.awaitTopics(t, podID, "/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete")
}

func TestForeignContainer(t *testing.T) {
	h := newHarness(t)
	h.runPause()
	err := h.create("c1", stdioPaths{}, map[string]string{typeKey: "container", sandboxKey: "another"})
	if !errdefs.IsInvalidArgument(err) {
		t.Errorf("container of another pod: %v", err)
	}
}

func TestContainerWithoutItsPod(t *testing.T) {
	h := newHarness(t)
	err := h.create("c1", stdioPaths{}, map[string]string{typeKey: "container", sandboxKey: podID})
	if !errdefs.IsFailedPrecondition(err) {
		t.Errorf("container without its pod: %v", err)
	}
	h.shutdownTask("c1")
	h.await("shim to end", h.end.Done())
}

// TestIdleLife: a shim that nobody asks for anything ends by itself, but not while its pod runs.
func TestIdleLife(t *testing.T) {
	h := newHarness(t)
	h.runSandbox()
	h.host.guard.setIdle(50 * time.Millisecond)
	select {
	case <-h.end.Done():
		t.Fatal("the shim ended under a running pod")
	case <-time.After(300 * time.Millisecond):
	}
	h.vm().Crash(nil)
	h.await("idle shim to end", h.end.Done())
}
