package plugin

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/anypb"

	agentpb "github.com/coffer-project/coffer/proto/agent"
	"github.com/coffer-project/coffer/shim/manager"
)

// TestSingleContainer is what ctr and nerdctl do: a task that names no pod gets a VM of its own.
func TestSingleContainer(t *testing.T) {
	h := newHarness(t)
	h.run("c1").Exit(5)
	if h.guest.Calls("CreateSandbox")[0].Request.(*agentpb.CreateSandboxRequest).GetSandboxPidns() {
		t.Error("a single container shares its processes with nobody")
	}
	if got := h.wait("c1", ""); got != 5 {
		t.Errorf("exit code is %d, want 5", got)
	}
	must(t, h.delete("c1", ""))
	h.checkNothingLeft()
	h.shutdownTask("c1")
	h.await("shim to end", h.end.Done())
}

func TestSingleContainerFails(t *testing.T) {
	h := newHarness(t)
	h.guest.Fail("CreateContainer", errdefs.ErrUnavailable)
	if err := h.create("c1", stdioPaths{}, nil); !errdefs.IsUnavailable(err) {
		t.Errorf("creation: %v", err)
	}
	h.checkNothingLeft()
	if err := h.delete("c1", ""); !errdefs.IsNotFound(err) {
		t.Errorf("delete: %v", err)
	}
	h.shutdownTask("c1")
	h.await("shim to end", h.end.Done())
}

// TestImageByContainerd: two images with the same layers share a snapshot, which names one of them. Clients other than CRI
// say in containerd's record of the container which one it is.
func TestImageByContainerd(t *testing.T) {
	h := newHarness(t)
	h.records.images["c1"] = "registry.example/twin:1"
	h.run("c1")
	request := h.guest.Calls("CreateContainer")[0].Request.(*agentpb.CreateContainerRequest)
	if got := request.GetStorages()[0].GetSource(); got != "registry.example/twin:1" {
		t.Errorf("the guest pulls %s", got)
	}
}

func TestImageNotToldByContainerd(t *testing.T) {
	h := newHarness(t)
	h.records.fail(errdefs.ErrUnavailable)
	if err := h.create("c1", stdioPaths{}, nil); !errdefs.IsUnavailable(err) {
		t.Errorf("creation: %v", err)
	}
	h.checkNothingLeft()
}

// newWaiting creates a container that names no network namespace; it waits for its network.
func newWaiting(t *testing.T) *harness {
	t.Helper()
	h := newHarness(t)
	h.netns = ""
	must(t, h.create("c1", stdioPaths{}, nil))
	return h
}

func (h *harness) state(id string) *taskapi.StateResponse {
	h.t.Helper()
	state, err := h.tasks.State(h.ctx, &taskapi.StateRequest{ID: id})
	must(h.t, err)
	return state
}

// TestWaitingContainer: ctr run --cni puts the network between creation and start, where the task's process tells.
func TestWaitingContainer(t *testing.T) {
	h := newWaiting(t)
	if state := h.state("c1"); state.GetPid() != fakeTID || state.GetStatus().String() != "CREATED" {
		t.Errorf("state is %v", state)
	}
	if n := len(h.driver.Instances()); n != 0 {
		t.Errorf("%d virtual machines before there is a network", n)
	}
	must(t, h.start("c1", ""))
	if state := h.state("c1"); state.GetPid() != uint32(h.vm().PID()) {
		t.Errorf("state is %v", state)
	}
	h.process("c1", "").Exit(6)
	if got := h.wait("c1", ""); got != 6 {
		t.Errorf("exit code is %d, want 6", got)
	}
	must(t, h.delete("c1", ""))
	h.checkNothingLeft()
	h.shutdownTask("c1")
	h.await("shim to end", h.end.Done())
	h.events.awaitTopics(t, "c1", "/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete")
}

// TestWaitingContainerRules are calls that need the guest before there is one.
func TestWaitingContainerRules(t *testing.T) {
	h := newWaiting(t)
	must(t, h.exec("c1", "e1", stdioPaths{}))
	calls := map[string]func() error{
		"start of an exec": func() error { return h.start("c1", "e1") },
		"stats": func() error {
			_, err := h.tasks.Stats(h.ctx, &taskapi.StatsRequest{ID: "c1"})
			return err
		},
		"pause": func() error {
			_, err := h.tasks.Pause(h.ctx, &taskapi.PauseRequest{ID: "c1"})
			return err
		},
		"update beyond the VM": func() error { return h.update("c1", `{"memory":{"limit":1099511627776}}`) },
		"second container":     func() error { return h.create("c2", stdioPaths{}, nil) },
	}
	for name, call := range calls {
		if err := call(); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	must(t, h.kill("c1", "e1", 9))
	must(t, h.delete("c1", "e1"))
}

func (h *harness) update(id, resources string) error {
	_, err := h.tasks.Update(h.ctx, &taskapi.UpdateTaskRequest{ID: id, Resources: &anypb.Any{Value: []byte(resources)}})
	return err
}

// TestWaitingContainerIsUpdated changes the limits of a container whose VM is not there yet.
func TestWaitingContainerIsUpdated(t *testing.T) {
	h := newWaiting(t)
	must(t, h.update("c1", `{"memory":{"limit":33554432},"pids":{"limit":7}}`))
	must(t, h.update("c1", `{"pids":{"limit":8}}`))
	if err := h.update("c1", `{"pids":`); !errdefs.IsInvalidArgument(err) {
		t.Errorf("update without sense: %v", err)
	}
	must(t, h.start("c1", ""))
	limits := h.guest.Calls("CreateContainer")[0].Request.(*agentpb.CreateContainerRequest).GetOCI().GetLinux().GetResources()
	if limits.GetMemory().GetLimit() != 33554432 || limits.GetPids().GetLimit() != 8 {
		t.Errorf("the guest was told of limits %v", limits)
	}
	must(t, h.update("c1", `{"pids":{"limit":9}}`))
	changed := h.guest.Calls("UpdateContainer")[0].Request.(*agentpb.UpdateContainerRequest)
	if changed.GetResources().GetPids().GetLimit() != 9 {
		t.Errorf("the guest was told of %v", changed)
	}
	must(t, h.kill("c1", "", 9))
	h.wait("c1", "")
	must(t, h.delete("c1", ""))
}

// TestWaitingContainerEnds lets a container end before, or by, its start. Nothing is held then, and it can be deleted.
func TestWaitingContainerEnds(t *testing.T) {
	boom := errors.New("boom")
	tests := map[string]struct {
		end  func(h *harness)
		want uint32
	}{
		"killed": {func(h *harness) {
			must(h.t, h.kill("c1", "", 28)) // a change of a window's size ends nothing
			must(h.t, h.kill("c1", "", 9))
		}, 137},
		"no network": {func(h *harness) {
			h.network.fail(errdefs.ErrFailedPrecondition, nil)
			if err := h.start("c1", ""); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "--cni") {
				h.t.Errorf("start: %v", err)
			}
		}, 255},
		"no image": {func(h *harness) {
			h.guest.Fail("CreateContainer", errdefs.ErrNotFound)
			if err := h.start("c1", ""); !errdefs.IsNotFound(err) {
				h.t.Errorf("start: %v", err)
			}
		}, 137},
		"vm that fails": {func(h *harness) {
			h.driver.StartErr = boom
			if err := h.start("c1", ""); err == nil || !strings.Contains(err.Error(), "boom") {
				h.t.Errorf("start: %v", err)
			}
		}, 255},
		"killed while it is pulled": {func(h *harness) {
			pulling := make(chan struct{})
			h.guest.Intercept("CreateContainer", func(ctx context.Context) error {
				close(pulling)
				<-ctx.Done()
				return ctx.Err()
			})
			failed := make(chan error, 1)
			go func() { failed <- h.start("c1", "") }()
			h.await("pull", pulling)
			must(h.t, h.kill("c1", "", 15))
			if err := <-failed; err == nil {
				h.t.Error("started all the same")
			}
		}, 137},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			h := newWaiting(t)
			test.end(h)
			if got := h.wait("c1", ""); got != test.want {
				t.Errorf("exit status is %d, want %d", got, test.want)
			}
			h.checkNothingLeft()
			if err := h.start("c1", ""); !errdefs.IsFailedPrecondition(err) {
				t.Errorf("second start: %v", err)
			}
			must(t, h.delete("c1", ""))
			h.shutdownTask("c1")
			h.await("shim to end", h.end.Done())
		})
	}
}

// TestWaitingContainerIsDeleted: a client may change its mind before the start.
func TestWaitingContainerIsDeleted(t *testing.T) {
	h := newWaiting(t)
	must(t, h.delete("c1", ""))
	h.checkNothingLeft()
	h.shutdownTask("c1")
	h.await("shim to end", h.end.Done())
}

func TestHostNetworkIsRefused(t *testing.T) {
	h := newHarness(t)
	bundle := h.writeBundle("c1", nil)
	raw, err := os.ReadFile(filepath.Join(bundle, "config.json"))
	must(t, err)
	raw = []byte(strings.Replace(string(raw), `"type":"network"`, `"type":"uts"`, 1))
	must(t, os.WriteFile(filepath.Join(bundle, "config.json"), raw, 0o600))
	_, err = h.tasks.Create(context.Background(), &taskapi.CreateTaskRequest{ID: "c1", Bundle: bundle, Rootfs: rootfs(t)})
	if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "host's network") {
		t.Errorf("host network: %v", err)
	}
}

// noting makes hooks that write what they are told to a file.
func (h *harness) noting() string {
	path := filepath.Join(h.root, "hooks")
	hook := func(kind string) []specs.Hook {
		return []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", `{ echo ` + kind + `; /bin/cat; echo; } >> ` + path}}}
	}
	h.hooks = &specs.Hooks{CreateRuntime: hook("create"), Poststop: hook("stop"), StartContainer: hook("inside")}
	return path
}

// TestHooks: nerdctl puts the network into the namespace by a hook, and takes it out by another.
func TestHooks(t *testing.T) {
	tests := map[string]struct {
		run  func(h *harness)
		want []string
	}{
		"whole life": {func(h *harness) {
			must(h.t, h.create("c1", stdioPaths{}, map[string]string{"team": "green"}))
			must(h.t, h.start("c1", ""))
			must(h.t, h.kill("c1", "", 9))
			h.process("c1", "").Exit(137)
			h.wait("c1", "")
			must(h.t, h.delete("c1", ""))
		}, []string{"create", "stop"}},
		"never started": {func(h *harness) {
			must(h.t, h.create("c1", stdioPaths{}, map[string]string{"team": "green"}))
			must(h.t, h.delete("c1", ""))
		}, []string{"create", "stop"}},
		"failing hook": {func(h *harness) {
			h.hooks.CreateRuntime = append(h.hooks.CreateRuntime, specs.Hook{Path: "/bin/false"})
			if err := h.create("c1", stdioPaths{}, map[string]string{"team": "green"}); err == nil || !strings.Contains(err.Error(), "createRuntime hook") {
				h.t.Errorf("creation: %v", err)
			}
		}, []string{"create", "stop"}},
		"failing creation": {func(h *harness) {
			h.records.fail(errdefs.ErrUnavailable)
			if err := h.create("c1", stdioPaths{}, map[string]string{"team": "green"}); !errdefs.IsUnavailable(err) {
				h.t.Errorf("creation: %v", err)
			}
		}, []string{"create", "stop"}},
		"container of a pod": {func(h *harness) {
			h.runSandbox()
			h.run("c1")
		}, nil},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t)
			h.netns = ""
			path := h.noting()
			test.run(h)
			raw, err := os.ReadFile(path)
			if err != nil && test.want != nil {
				t.Fatal(err)
			}
			var got []string
			for line := range strings.Lines(string(raw)) {
				var state specs.State
				if json.Unmarshal([]byte(line), &state) != nil {
					got = append(got, strings.TrimSpace(line))
				} else if want := map[bool]int{true: fakeTID}[len(got) == 1]; state.ID != "c1" || state.Pid != want || state.Annotations["team"] != "green" {
					t.Errorf("after %q the state is %+v", got, state)
				}
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("hooks ran: %q, want %q", got, test.want)
			}
			if record, err := manager.ReadRecord(h.bundle); err != nil || record.Hooks {
				t.Errorf("the record says that hooks are left: %+v, %v", record, err)
			}
		})
	}
}
