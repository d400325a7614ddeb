package plugin

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	agentpb "github.com/coffer-project/coffer/proto/agent"
)

// reader is a client that reads one FIFO to its end.
type reader struct {
	done chan struct{}
	text bytes.Buffer
}

func read(t *testing.T, path string) *reader {
	t.Helper()
	r := &reader{done: make(chan struct{})}
	go func() {
		defer close(r.done)
		file, err := os.OpenFile(path, os.O_RDONLY, 0)
		if err != nil {
			return
		}
		defer file.Close()
		_, _ = io.Copy(&r.text, file)
	}()
	return r
}

// end waits for the end of the FIFO, which must come by itself, and returns what was read.
func (r *reader) end(t *testing.T) string {
	t.Helper()
	select {
	case <-r.done:
		return r.text.String()
	case <-time.After(patience):
		t.Fatal("the FIFO did not end")
		return ""
	}
}

func TestInitExitCodes(t *testing.T) {
	h := newHarness(t)
	h.runSandbox()
	for _, code := range []uint32{0, 1, 42, 137, 255} {
		id := fmt.Sprintf("c%d", code)
		h.run(id).Exit(int32(code))
		if got := h.wait(id, ""); got != code {
			t.Errorf("exit code is %d, want %d", got, code)
		}
		h.events.awaitTopics(t, id, "/tasks/create", "/tasks/start", "/tasks/exit")
		// containerd, when it starts, deletes a task without processes unasked.
		pids, err := h.tasks.Pids(h.ctx, &taskapi.PidsRequest{ID: id})
		if err != nil || len(pids.GetProcesses()) != 1 {
			t.Errorf("processes of an ended container: %v, %v; want one", pids, err)
		}
		must(t, h.delete(id, ""))
		h.events.awaitTopics(t, id, "/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete")
	}
}

// TestFastExitInit lets the process exit before its start has returned.
func TestFastExitInit(t *testing.T) {
	h := newHarness(t)
	h.runSandbox()
	must(t, h.create("c1", stdioPaths{}, nil))
	p := h.process("c1", "")
	h.guest.Intercept("StartContainer", func(context.Context) error { p.Exit(3); return nil })
	must(t, h.start("c1", ""))
	if got := h.wait("c1", ""); got != 3 {
		t.Errorf("exit code is %d, want 3", got)
	}
	h.events.awaitTopics(t, "c1", "/tasks/create", "/tasks/start", "/tasks/exit")
}

// TestOutputThenExit demands all output in the client's hands when the exit is reported.
func TestOutputThenExit(t *testing.T) {
	h := newHarness(t)
	h.runSandbox()
	io := h.fifos("c1")
	stdout, stderr := read(t, io.stdout), read(t, io.stderr)
	must(t, h.create("c1", io, nil))
	must(t, h.start("c1", ""))
	p := h.process("c1", "")
	want := strings.Repeat("0123456789abcdef", 64<<10)
	p.Print(want)
	p.PrintError("oops")
	p.Exit(0)
	h.wait("c1", "")
	if got := stdout.end(t); got != want {
		t.Errorf("read %d bytes of stdout, want %d", len(got), len(want))
	}
	if got := stderr.end(t); got != "oops" {
		t.Errorf("stderr is %q", got)
	}
}

// TestExecOutputDrainAfterExit does the same for an exec, while the container runs on.
func TestExecOutputDrainAfterExit(t *testing.T) {
	h := newHarness(t)
	h.runSandbox()
	h.run("c1")
	io := h.fifos("e1")
	stdout := read(t, io.stdout)
	must(t, h.exec("c1", "e1", io))
	must(t, h.start("c1", "e1"))
	p := h.process("c1", "e1")
	want := strings.Repeat("line\n", 50000)
	p.Print(want)
	p.Exit(7)
	if got := h.wait("c1", "e1"); got != 7 {
		t.Errorf("exit code is %d, want 7", got)
	}
	if got := stdout.end(t); got != want {
		t.Errorf("read %d bytes, want %d", len(got), len(want))
	}
	exit := h.events.awaitExit(t, "e1")
	if exit.GetContainerID() != "c1" || exit.GetExitStatus() != 7 {
		t.Errorf("exit event is %v", exit)
	}
	must(t, h.delete("c1", "e1"))
	if err := h.delete("c1", "e1"); !errdefs.IsNotFound(err) {
		t.Errorf("second delete: %v", err)
	}
}

func TestStdinDetachReattach(t *testing.T) {
	h := newHarness(t)
	h.runSandbox()
	io := h.fifos("c1")
	must(t, h.create("c1", io, nil))
	must(t, h.start("c1", ""))
	p := h.process("c1", "")
	write := func(text string) {
		client, err := os.OpenFile(io.stdin, os.O_WRONLY, 0)
		must(t, err)
		_, err = client.WriteString(text)
		must(t, err)
		must(t, client.Close())
	}
	write("first ")
	_, err := h.guest.WaitCall(h.ctx, "WriteStdin", 1)
	must(t, err)
	select {
	case <-p.StdinClosed():
		t.Fatal("a client that detached closed stdin")
	default:
	}
	write("second")
	_, err = h.tasks.CloseIO(h.ctx, &taskapi.CloseIORequest{ID: "c1", Stdin: true})
	must(t, err)
	h.await("stdin to close", p.StdinClosed())
	if got := p.Stdin(); got != "first second" {
		t.Errorf("stdin is %q", got)
	}
}

// TestNoStdin: a process that gets no input must see its end, or one that reads waits for ever.
func TestNoStdin(t *testing.T) {
	h := newHarness(t)
	h.runSandbox()
	h.await("the container's stdin to close", h.run("c1").StdinClosed())
	must(t, h.exec("c1", "e1", stdioPaths{}))
	must(t, h.start("c1", "e1"))
	h.await("the exec's stdin to close", h.process("c1", "e1").StdinClosed())
	if got := h.process("c1", "e1").Stdin(); got != "" {
		t.Errorf("the exec was given %q", got)
	}
}

// TestStalledClient kills a process whose client has stopped reading: its exit is reported all the same.
func TestStalledClient(t *testing.T) {
	h := newHarness(t)
	h.runSandbox()
	io := h.fifos("c1")
	must(t, h.create("c1", io, nil))
	must(t, h.start("c1", ""))
	h.process("c1", "").Print(strings.Repeat("x", 1<<20))
	must(t, h.kill("c1", "", uint32(unix.SIGKILL)))
	if got := h.wait("c1", ""); got != 137 {
		t.Errorf("exit code is %d, want 137", got)
	}
	must(t, h.delete("c1", ""))
}

// TestInitIsReportedLast: a container's exit comes after those of its execs.
func TestInitIsReportedLast(t *testing.T) {
	h := newHarness(t)
	h.runSandbox()
	p := h.run("c1")
	must(t, h.exec("c1", "e1", stdioPaths{}))
	must(t, h.start("c1", "e1"))
	p.Exit(0)
	time.AfterFunc(50*time.Millisecond, func() { h.process("c1", "e1").Exit(137) })
	h.wait("c1", "")
	h.events.awaitTopics(t, "c1", "/tasks/create", "/tasks/start", "/tasks/exec-added", "/tasks/exec-started", "/tasks/exit", "/tasks/exit")
	if h.events.exits()[1].GetID() != "c1" {
		t.Error("the container was reported before its exec")
	}
}

// TestTaskRules are calls that come at the wrong time.
func TestTaskRules(t *testing.T) {
	h := newHarness(t)
	h.runSandbox()
	for name, call := range map[string]func() error{
		"start":  func() error { return h.start("none", "") },
		"kill":   func() error { return h.kill("none", "", 9) },
		"exec":   func() error { return h.exec("none", "e", stdioPaths{}) },
		"delete": func() error { return h.delete("none", "") },
		"state":  func() error { _, err := h.tasks.State(h.ctx, &taskapi.StateRequest{ID: "none"}); return err },
		"stats":  func() error { _, err := h.tasks.Stats(h.ctx, &taskapi.StatsRequest{ID: "none"}); return err },
		"pids":   func() error { _, err := h.tasks.Pids(h.ctx, &taskapi.PidsRequest{ID: "none"}); return err },
	} {
		if err := call(); !errdefs.IsNotFound(err) {
			t.Errorf("%s without create: %v", name, err)
		}
	}
	p := h.run("c1")
	_, err := h.tasks.Create(h.ctx, &taskapi.CreateTaskRequest{ID: "c1", Bundle: h.root + "/bundle-c1", Rootfs: rootfs(t)})
	if !errdefs.IsAlreadyExists(err) {
		t.Errorf("second create: %v", err)
	}
	if err := h.start("c1", ""); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("second start: %v", err)
	}
	if err := h.delete("c1", ""); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("delete while running: %v", err)
	}
	must(t, h.exec("c1", "e1", stdioPaths{}))
	if err := h.exec("c1", "e1", stdioPaths{}); !errdefs.IsAlreadyExists(err) {
		t.Errorf("second exec: %v", err)
	}
	p.Exit(0)
	h.wait("c1", "")
	if err := h.kill("c1", "", 9); !errdefs.IsNotFound(err) {
		t.Errorf("kill of an exited process: %v", err)
	}
	if err := h.exec("c1", "e2", stdioPaths{}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("exec in an exited container: %v", err)
	}
	if _, err := h.tasks.Stats(h.ctx, &taskapi.StatsRequest{ID: "c1"}); !errdefs.IsNotFound(err) {
		t.Errorf("stats of an exited container: %v", err)
	}
	must(t, h.delete("c1", ""))
	if err := h.delete("c1", ""); !errdefs.IsNotFound(err) {
		t.Errorf("second delete: %v", err)
	}
	if n := len(h.guest.Calls("RemoveContainer")); n != 1 {
		t.Errorf("the guest was asked %d times to remove the container", n)
	}
}

func TestKillBeforeStart(t *testing.T) {
	h := newHarness(t)
	h.runSandbox()
	must(t, h.create("c1", stdioPaths{}, nil))
	must(t, h.kill("c1", "", 9))
	if got := h.wait("c1", ""); got != 137 {
		t.Errorf("exit code is %d, want 137", got)
	}
	must(t, h.delete("c1", ""))
}

func TestDeleteBeforeStart(t *testing.T) {
	h := newHarness(t)
	h.runSandbox()
	must(t, h.create("c1", stdioPaths{}, nil))
	must(t, h.delete("c1", ""))
	h.events.awaitTopics(t, "c1", "/tasks/create", "/tasks/delete")
}

func TestPauseResume(t *testing.T) {
	h := newHarness(t)
	h.runSandbox()
	h.run("c1")
	_, err := h.tasks.Resume(h.ctx, &taskapi.ResumeRequest{ID: "c1"})
	if !errdefs.IsFailedPrecondition(err) {
		t.Errorf("resume of a running container: %v", err)
	}
	_, err = h.tasks.Pause(h.ctx, &taskapi.PauseRequest{ID: "c1"})
	must(t, err)
	state, err := h.tasks.State(h.ctx, &taskapi.StateRequest{ID: "c1"})
	must(t, err)
	if state.GetStatus().String() != "PAUSED" {
		t.Errorf("state is %s", state.GetStatus())
	}
	_, err = h.tasks.Resume(h.ctx, &taskapi.ResumeRequest{ID: "c1"})
	must(t, err)
	h.events.awaitTopics(t, "c1", "/tasks/create", "/tasks/start", "/tasks/paused", "/tasks/resumed")
}

func TestOOM(t *testing.T) {
	h := newHarness(t)
	h.runSandbox()
	h.run("c1")
	h.guest.OOM("c1")
	h.events.awaitTopics(t, "c1", "/tasks/create", "/tasks/start", "/tasks/oom")
}

// TestFailedCreate lets each step of a creation fail: the container is unknown afterwards, on both sides, and the reason
// of the guest reaches the client.
func TestFailedCreate(t *testing.T) {
	for name, test := range map[string]struct {
		arrange func(*harness)
		io      func(*harness) stdioPaths
		class   func(error) bool
		want    string
	}{
		"guest refuses": {
			arrange: func(h *harness) {
				h.guest.Fail("CreateContainer", fmt.Errorf("key broker refused the key: %w", errdefs.ErrPermissionDenied))
			},
			class: errdefs.IsPermissionDenied, want: "key broker refused the key",
		},
		"no fifo": {
			io:    func(h *harness) stdioPaths { return stdioPaths{stdout: h.root + "/missing"} },
			class: errdefs.IsNotFound, want: "missing",
		},
		"no bundle": {
			arrange: func(h *harness) { must(h.t, os.WriteFile(h.root+"/bundle-c1", nil, 0o600)) },
			class:   func(error) bool { return true },
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t)
			h.runSandbox()
			if name == "no bundle" {
				_, err := h.tasks.Create(h.ctx, &taskapi.CreateTaskRequest{ID: "c1", Bundle: h.root + "/none"})
				if err == nil {
					t.Fatal("a container without a bundle was created")
				}
				return
			}
			if test.arrange != nil {
				test.arrange(h)
			}
			var io stdioPaths
			if test.io != nil {
				io = test.io(h)
			}
			err := h.create("c1", io, nil)
			if !test.class(err) || !strings.Contains(fmt.Sprint(err), test.want) {
				t.Errorf("error is %v", err)
			}
			if err := h.delete("c1", ""); !errdefs.IsNotFound(err) {
				t.Errorf("the container is known: %v", err)
			}
			if _, err := h.guest.Process("c1", ""); err == nil {
				t.Error("the guest still has the container")
			}
			if state := h.status(false).GetState(); state != "SANDBOX_READY" {
				t.Errorf("pod is %s", state)
			}
		})
	}
}

// TestAbandonedCreate: a client that goes away during an image pull leaves no container behind.
func TestAbandonedCreate(t *testing.T) {
	h := newHarness(t)
	h.runSandbox()
	pulling, release := make(chan struct{}), make(chan struct{})
	h.guest.Intercept("CreateContainer", func(context.Context) error {
		close(pulling)
		<-release
		return nil
	})
	ctx, cancel := context.WithCancel(h.ctx)
	created := make(chan error, 1)
	bundle, mounts := h.writeBundle("c1", nil), rootfs(t)
	go func() {
		_, err := h.tasks.Create(ctx, &taskapi.CreateTaskRequest{ID: "c1", Bundle: bundle, Rootfs: mounts})
		created <- err
	}()
	h.await("guest to pull", pulling)
	cancel()
	if err := <-created; err == nil {
		t.Error("an abandoned creation succeeded")
	}
	// The protocol does not carry the cancellation; containerd's clean-up does.
	if err := h.delete("c1", ""); !errdefs.IsNotFound(err) {
		t.Errorf("delete of an abandoned creation: %v", err)
	}
	removed := h.guest.Calls("RemoveContainer")
	if len(removed) != 1 || removed[0].Request.(*agentpb.RemoveContainerRequest).GetContainerId() != "c1" {
		t.Errorf("the guest was asked to remove %v", removed)
	}
	close(release)
	h.guest.Intercept("CreateContainer", nil)
	h.run("c2")
}
