package integration

import (
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/integration/harness"
)

// TestShim leads processes of one real VM through the cases that a shim must get right, by the shim's own socket. They are
// those of containerd's shimtest; where the others of its list are tested:
//
//	Lifecycle, Events                     shim/plugin TestPodLife, TestSingleContainer; TestCtr
//	HundredLayers                         TestRestarts/snapshotter_during_a_pull
//	BindMountRead, LargeFileRead          TestLife/volumes
//	OutboundTCP, OutboundUDP, DNSResolve  TestLife/network; TestCtr and every pull (the guest resolves and fetches)
//	OOM                                   TestLife/oom
//	WaitUnblocksOnStop                    here for one process; shim/plugin TestWaitUnblocksOnStop for a pod
//	ResourceReleaseOnShutdown             shim/plugin TestResourceReleaseOnShutdown; TestVMFaults/death
//	StressLifecycle, StressExec           TestLife/leaks
//	Transfer, UDSRoundTrip                not offered: nothing of the host's is shared with a guest
func TestShim(t *testing.T) {
	t.Parallel()
	node := sharedNode(t)
	l := newShimLab(t, node, plainImage(t, node, "shim"))
	t.Run("exits", func(t *testing.T) { shimExits(t, l) })
	t.Run("streams", func(t *testing.T) { shimStreams(t, l) })
	t.Run("execs", func(t *testing.T) { shimExecs(t, l) })
	t.Run("rules", func(t *testing.T) { shimRules(t, l) })
	t.Run("MemberContainersShareNetwork", func(t *testing.T) {
		server := l.runTask(t, false, "sh", "-c", "nc -l -p 7777 -e cat")
		l.runTask(t, false, "sh", "-c", "until echo hello | nc 127.0.0.1 7777; do sleep 0.1; done").ends(t, 0, "hello\n")
		server.ends(t, 0, "")
	})
}

// plainImage puts a busybox image into the node's http registry and returns its reference.
func plainImage(t *testing.T, node *harness.Node, name string) string {
	t.Helper()
	reference := node.HTTP.Host + "/test/" + name + ":v1"
	if err := node.Ctl(t.Context(), true, "image", "copy", "oci:"+busyboxLayout(t, node).Dir, reference, "--plain-http"); err != nil {
		t.Fatal(err)
	}
	return reference
}

// shimExits are InitExitCodes, FastExitInit, OutputThenExit and Clock.
func shimExits(t *testing.T, l *shimLab) {
	t.Helper()
	for _, status := range []uint32{0, 42, 255} {
		l.runTask(t, false, "sh", "-c", fmt.Sprintf("echo %d; exit %d", status, status)).ends(t, status, fmt.Sprintf("%d\n", status))
	}
	for range 3 {
		l.runTask(t, false, "true").ends(t, 0, "")
	}
	killed := l.runTask(t, false, "sleep", "100000")
	killed.kill(t, syscall.SIGKILL)
	killed.ends(t, 137, "")

	// All of a large output is there when the exit is told, on both streams.
	const count = 40000
	p := l.runTask(t, false, "sh", "-c", fmt.Sprintf("yes %s | head -n %d; echo last >&2; exit 3", strings.TrimSpace(lines(1)), count))
	p.ends(t, 3, lines(count))
	if got := <-p.err; got != "last\n" {
		t.Errorf("stderr is %q", got)
	}

	before := time.Now()
	clock := l.runTask(t, false, "date", "+%s")
	clock.wait(t)
	seconds, err := strconv.ParseInt(strings.TrimSpace(<-clock.out), 10, 64)
	if now := time.Unix(seconds, 0); err != nil || now.Before(before.Add(-5*time.Second)) || now.After(time.Now().Add(5*time.Second)) {
		t.Errorf("the guest's clock says %s at %s: %v", now, time.Now(), err)
	}
}

// shimStreams are StdioRoundTrip, LargeStdioRoundTrip and StdinDetachReattach.
func shimStreams(t *testing.T, l *shimLab) {
	t.Helper()
	for name, text := range map[string]string{"small": "hello\n", "large": lines(40000), "binary": "\x00\xff\x00\n\r\x1b"} {
		t.Run(name, func(t *testing.T) {
			p := l.runTask(t, true, "cat")
			in := p.feed(t)
			if _, err := in.WriteString(text); err != nil {
				t.Error(err)
			}
			in.Close()
			p.closeStdin(t)
			p.ends(t, 0, text)
		})
	}
	t.Run("detach", func(t *testing.T) {
		p := l.runTask(t, true, "cat")
		for _, text := range []string{"one\n", "two\n", "three\n"} {
			in := p.feed(t)
			if _, err := in.WriteString(text); err != nil {
				t.Error(err)
			}
			in.Close() // the program must not see this as the end
		}
		p.closeStdin(t)
		p.ends(t, 0, "one\ntwo\nthree\n")
	})
	t.Run("none", func(t *testing.T) { l.runTask(t, false, "cat").ends(t, 0, "") })
}

// shimExecs are Exec, ExitCodes, FastExitOutput, ExecOutputDrainAfterExit, ExecDiscardIO and ExecCommandNotFound.
func shimExecs(t *testing.T, l *shimLab) {
	t.Helper()
	c := l.runTask(t, false, "sleep", "100000")
	for _, status := range []uint32{0, 1, 42, 255} {
		c.runExec(t, false, "sh", "-c", fmt.Sprintf("exit %d", status)).ends(t, status, "")
	}
	for i := range 10 {
		c.runExec(t, false, "echo", strconv.Itoa(i)).ends(t, 0, fmt.Sprintf("%d\n", i))
	}
	const count = 20000
	c.runExec(t, false, "sh", "-c", fmt.Sprintf("yes %s | head -n %d", strings.TrimSpace(lines(1)), count)).ends(t, 0, lines(count))
	e := c.runExec(t, true, "cat")
	in := e.feed(t)
	if _, err := in.WriteString("hello\n"); err != nil {
		t.Error(err)
	}
	in.Close()
	e.closeStdin(t)
	e.ends(t, 0, "hello\n")

	for i := range 3 { // always by the same name
		again := l.streams(t, false)
		again.id, again.exec = c.id, "again"
		if err := l.addExec(t, again, []string{"echo", strconv.Itoa(i)}); err != nil {
			t.Fatal(native(err))
		}
		again.start(t)
		again.ends(t, 0, fmt.Sprintf("%d\n", i))
	}

	missing := c.newExec(t, false, "/no/such/program")
	if err := missing.tryStart(t); err == nil || !strings.Contains(err.Error(), "/no/such/program") {
		t.Errorf("start of a missing program: %v", err)
	}
	c.runExec(t, false, "echo", "still here").ends(t, 0, "still here\n")

	last := c.runExec(t, false, "sleep", "100000")
	c.kill(t, syscall.SIGKILL)
	c.ends(t, 137, "")
	// A container takes its execs with it.
	if _, err := l.tasks.Wait(l.ctx(t), &taskapi.WaitRequest{ID: last.id, ExecID: last.exec}); !errdefs.IsNotFound(native(err)) {
		t.Errorf("wait for an exec of a deleted container: %v", err)
	}
}

// shimRules are CreateTwiceRejected, StartWithoutCreateRejected, WaitUnblocksOnStop and the others that come at the wrong
// time.
func shimRules(t *testing.T, l *shimLab) {
	t.Helper()
	c := l.newTask(t, false, "sleep", "100000")
	if _, err := l.tasks.Create(l.ctx(t), l.request(t, c, []string{"true"})); !errdefs.IsAlreadyExists(native(err)) {
		t.Errorf("second creation: %v", err)
	}
	if err := (&program{l: l, id: "nobody"}).tryStart(t); !errdefs.IsNotFound(err) {
		t.Errorf("start without a creation: %v", err)
	}
	if err := l.addExec(t, &program{l: l, id: "nobody", exec: "e"}, []string{"true"}); !errdefs.IsNotFound(native(err)) {
		t.Errorf("exec without a container: %v", err)
	}
	waiting := make(chan error, 1)
	ctx := l.ctx(t)
	go func() {
		response, err := l.tasks.Wait(ctx, &taskapi.WaitRequest{ID: c.id})
		if err == nil && response.GetExitStatus() != 137 {
			err = fmt.Errorf("exit status is %d", response.GetExitStatus())
		}
		waiting <- err
	}()
	c.start(t)
	if err := c.tryStart(t); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("second start: %v", err)
	}
	if _, err := l.tasks.Delete(l.ctx(t), &taskapi.DeleteRequest{ID: c.id}); !errdefs.IsFailedPrecondition(native(err)) {
		t.Errorf("delete of a running container: %v", err)
	}
	e := c.newExec(t, false, "true")
	if err := l.addExec(t, e, []string{"true"}); !errdefs.IsAlreadyExists(native(err)) {
		t.Errorf("second exec of the same name: %v", err)
	}
	e.start(t)
	e.ends(t, 0, "")
	c.kill(t, syscall.SIGTERM) // the first process of a container takes no default action, so sleep goes on
	c.kill(t, syscall.SIGKILL)
	if err := <-waiting; err != nil {
		t.Errorf("the client that has waited from before the start: %v", err)
	}
	if _, err := l.tasks.Kill(l.ctx(t), &taskapi.KillRequest{ID: c.id, Signal: 9}); !errdefs.IsNotFound(native(err)) {
		t.Errorf("kill of an ended container: %v", err)
	}
	c.ends(t, 137, "")
	if _, err := l.tasks.State(l.ctx(t), &taskapi.StateRequest{ID: c.id}); !errdefs.IsNotFound(native(err)) {
		t.Errorf("state of a deleted container: %v", err)
	}
}
