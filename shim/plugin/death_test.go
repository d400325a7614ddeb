package plugin

import (
	"context"
	"errors"
	"strings"
	"testing"

	sandboxapi "github.com/containerd/containerd/api/runtime/sandbox/v1"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
)

// TestDeath lets the VM end by itself, or its agent's connection break, while the pod is busy with different things. All
// containers are reported, the pod's end is told, nothing is held any more, and the shim can be shut down.
func TestDeath(t *testing.T) {
	crash := func(h *harness) {
		h.vm().Print("Out of memory: Killed process 1")
		h.vm().Crash(errors.New("qemu was killed by signal 9"))
	}
	for name, test := range map[string]struct {
		arrange func(*harness)
		die     func(*harness)
		// exits are the ids whose exit events are due, the container's after its exec's.
		exits []string
		cause string
	}{
		"idle": {die: crash, cause: "signal 9"},
		"container created": {
			arrange: func(h *harness) { must(h.t, h.create("c1", stdioPaths{}, nil)) },
			die:     crash, exits: []string{"c1"}, cause: "signal 9",
		},
		"container running": {
			arrange: func(h *harness) { h.run("c1") },
			die:     crash, exits: []string{"c1"}, cause: "Out of memory",
		},
		"exec running": {
			arrange: func(h *harness) {
				h.run("c1")
				must(h.t, h.exec("c1", "e1", stdioPaths{}))
				must(h.t, h.start("c1", "e1"))
			},
			die: crash, exits: []string{"e1", "c1"}, cause: "signal 9",
		},
		"container paused": {
			arrange: func(h *harness) {
				h.run("c1")
				_, err := h.tasks.Pause(h.ctx, &taskapi.PauseRequest{ID: "c1"})
				must(h.t, err)
			},
			die: crash, exits: []string{"c1"}, cause: "signal 9",
		},
		"agent lost": {
			arrange: func(h *harness) { h.run("c1") },
			die:     func(h *harness) { h.guest.Drop() },
			exits:   []string{"c1"}, cause: "connection to the guest's agent broke",
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t)
			h.runSandbox()
			if test.arrange != nil {
				test.arrange(h)
			}
			test.die(h)
			waited, err := h.sandboxes.WaitSandbox(h.ctx, &sandboxapi.WaitSandboxRequest{SandboxID: podID})
			must(t, err)
			if waited.GetExitStatus() != 255 {
				t.Errorf("dead pod exited with %d, want 255", waited.GetExitStatus())
			}
			for i, id := range test.exits {
				exit := h.events.awaitExit(t, id)
				if exit.GetExitStatus() != 255 {
					t.Errorf("%s exited with %d, want 255", id, exit.GetExitStatus())
				}
				if got := h.events.exits()[i].GetID(); got != id {
					t.Errorf("exit number %d is %s's, want %s's", i, got, id)
				}
			}
			h.checkNothingLeft()
			if status := h.status(false); status.GetState() != "SANDBOX_NOTREADY" {
				t.Errorf("dead pod is %s", status.GetState())
			}
			if report := h.report(); !strings.Contains(report.Error, test.cause) || len(report.Console) == 0 {
				t.Errorf("report is %+v, want %q in its error", report, test.cause)
			}
			if err := h.create("late", stdioPaths{}, nil); !errdefs.IsFailedPrecondition(err) {
				t.Errorf("container in a dead pod: %v", err)
			}
			if len(test.exits) > 0 {
				must(t, h.delete("c1", ""))
			}
			_, err = h.sandboxes.StopSandbox(h.ctx, &sandboxapi.StopSandboxRequest{SandboxID: podID})
			must(t, err)
			_, err = h.sandboxes.ShutdownSandbox(h.ctx, &sandboxapi.ShutdownSandboxRequest{SandboxID: podID})
			must(t, err)
			h.await("shim to end", h.end.Done())
		})
	}
}

// TestDeathDuringCreate: the call that waits for an image pull fails with the reason.
func TestDeathDuringCreate(t *testing.T) {
	h := newHarness(t)
	h.runSandbox()
	h.guest.Intercept("CreateContainer", func(ctx context.Context) error {
		h.vm().Crash(errors.New("qemu was killed by signal 9"))
		<-ctx.Done()
		return ctx.Err()
	})
	if err := h.create("c1", stdioPaths{}, nil); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "signal 9") {
		t.Errorf("creation in a dying pod: %v", err)
	}
	h.await("pod to end", h.host.guard.pod.Ended())
	h.checkNothingLeft()
}

// TestWaitUnblocksOnStop: clients that wait for processes are answered when the pod stops.
func TestWaitUnblocksOnStop(t *testing.T) {
	h := newHarness(t)
	h.runSandbox()
	h.run("c1")
	h.run("c2")
	statuses := make(chan uint32, 2)
	for _, id := range []string{"c1", "c2"} {
		go func() {
			response, err := h.tasks.Wait(h.ctx, &taskapi.WaitRequest{ID: id})
			if err != nil {
				statuses <- 0
				return
			}
			statuses <- response.GetExitStatus()
		}()
	}
	_, err := h.sandboxes.StopSandbox(h.ctx, &sandboxapi.StopSandboxRequest{SandboxID: podID})
	must(t, err)
	for range 2 {
		if status := <-statuses; status != 137 {
			t.Errorf("waiter got %d, want 137", status)
		}
	}
}

// TestDeafGuest: a guest that answers nothing any more does not keep a pod from stopping.
func TestDeafGuest(t *testing.T) {
	h := newHarness(t)
	h.config.Guest.RequestTimeout.Duration /= 10
	h.runSandbox()
	h.run("c1")
	for _, method := range []string{"SignalProcess", "DestroySandbox"} {
		h.guest.Intercept(method, func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
	}
	_, err := h.sandboxes.StopSandbox(h.ctx, &sandboxapi.StopSandboxRequest{SandboxID: podID})
	must(t, err)
	h.events.awaitExit(t, "c1")
	h.checkNothingLeft()
}

// TestResourceReleaseOnShutdown: a shim that is told to end at once (SIGTERM does this) stops its pod and delivers the
// last events first.
func TestResourceReleaseOnShutdown(t *testing.T) {
	h := newHarness(t)
	h.runSandbox()
	h.run("c1")
	h.end.Shutdown()
	h.await("shim to end", h.end.Done())
	h.checkNothingLeft()
	if len(h.events.exits()) != 1 {
		t.Error("the container's exit was not told")
	}
}
