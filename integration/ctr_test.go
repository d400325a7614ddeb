package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/console"

	"github.com/coffer-project/coffer/integration/harness"
	"github.com/coffer-project/coffer/integration/registrytest"
)

// ctrLab runs ctr on a node.
type ctrLab struct {
	node  *harness.Node
	image string
	run   []string
}

// TestCtr runs containers by ctr, which knows no pods: each makes a VM of its own.
func TestCtr(t *testing.T) {
	t.Parallel()
	node := sharedNode(t)
	l := &ctrLab{node: node, image: encryptedImage(t, node)}
	var err error
	if l.run, err = node.CtrRun(); err != nil {
		t.Fatal(err)
	}
	l.ctr(t, node.CtrPull(l.image)...)
	t.Cleanup(func() { l.removeAll(t) })
	t.Run("local pull", l.localPull)
	t.Run("refused", l.refused)
	t.Run("detached", l.detached)
	t.Run("logger", l.logger)
	t.Run("attached", l.attached)
	t.Run("terminal", l.terminal)
	t.Run("twin", l.twin)
	if err := node.Leftovers(); err != nil {
		t.Error(err)
	}
}

// removeAll removes what a failed test has left.
func (l *ctrLab) removeAll(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), lifeBudget)
	defer cancel()
	list, err := l.node.Ctr(ctx, "container", "list", "-q")
	if err != nil {
		t.Error(err)
	}
	for id := range strings.FieldsSeq(list) {
		_, _ = l.node.Ctr(ctx, "task", "delete", "--force", id) // it may have none
		if _, err := l.node.Ctr(ctx, "container", "delete", id); err != nil {
			t.Error(err)
		}
	}
}

// try runs ctr to its end.
func (l *ctrLab) try(t *testing.T, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), lifeBudget)
	defer cancel()
	return l.node.Ctr(ctx, args...)
}

// ctr does the same for a command that must succeed.
func (l *ctrLab) ctr(t *testing.T, args ...string) string {
	t.Helper()
	out, err := l.try(t, args...)
	if err != nil {
		t.Fatalf("ctr %.200q: %v", args, err)
	}
	return out
}

// runArgs are the arguments of a ctr run.
func (l *ctrLab) runArgs(flags []string, id string, command ...string) []string {
	args := append(append([]string{"run"}, l.run...), flags...)
	return append(append(args, l.image, id), command...)
}

// localPull lets ctr unpack by itself an image whose lower layer is there as a reference.
func (l *ctrLab) localPull(t *testing.T) {
	reference := l.node.HTTP.Host + "/test/ctr-local:v1"
	image := busyboxLayout(t, l.node, hello(registrytest.Gzip, "local"))
	if err := l.node.Ctl(t.Context(), true, "image", "copy", "oci:"+image.Dir, reference, "--plain-http"); err != nil {
		t.Fatal(err)
	}
	_, err := l.try(t, l.node.CtrPull(reference, "--local")...)
	var failed *harness.CtrError
	if !errors.As(err, &failed) || !strings.Contains(failed.Stderr, "without --local") {
		t.Errorf("got %v, want an error that tells what to do", err)
	}
}

// refused asks for what a VM cannot give. Each answer tells what to do, and nothing is left.
func (l *ctrLab) refused(t *testing.T) {
	tests := map[string]struct {
		args []string
		want string
	}{
		"no network":   {l.runArgs(nil, "r1", "true"), "--cni"},
		"host network": {l.runArgs([]string{"--net-host"}, "r2", "true"), "host's network"},
		"host root":    {append(append([]string{"run", "--rootfs"}, l.run...), t.TempDir(), "r3", "true"), "run an image instead"},
		"runc":         {[]string{"run", "--runtime", "io.containerd.runc.v2", "--snapshotter", "coffer", l.image, "r5", "true"}, "is left to guests"},
		"no program":   {l.runArgs([]string{"--cni"}, "r4", "/no/such/program"), "/no/such/program"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := l.try(t, test.args...)
			var failed *harness.CtrError
			if !errors.As(err, &failed) || !strings.Contains(failed.Stderr, test.want) {
				t.Errorf("got %v, want a failure that says %q", err, test.want)
			}
			// ctr deletes the task by itself, but without --rm not the container.
			l.ctr(t, "container", "delete", test.args[len(test.args)-2])
			if err := l.node.Leftovers(); err != nil {
				t.Error(err)
			}
		})
	}
}

// detached leads a container in the background through its life.
func (l *ctrLab) detached(t *testing.T) {
	dir := t.TempDir()
	host, log := filepath.Join(dir, "greeting"), filepath.Join(dir, "log")
	if err := os.WriteFile(host, []byte("hello from the host\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	l.ctr(t, l.runArgs([]string{
		"--detach", "--cni", "--env", "COLOUR=blue", "--cwd", "/tmp", "--user", "1000:1001", "--read-only", "--label", "team=green",
		"--memory-limit", strconv.Itoa(64 << 20), "--hostname", "box", "--log-uri", "file://" + log,
		"--mount", "type=bind,src=" + host + ",dst=/greeting,options=rbind:ro", "--mount", "type=tmpfs,src=tmpfs,dst=/scratch",
	}, "c1", "/bin/sh", "-c", "trap 'echo bye; exit 4' TERM; echo up; while :; do sleep 1; done")...)
	l.waitLog(t, log, "up\n")

	t.Run("specification", func(t *testing.T) {
		script := `id -u; id -g; pwd; echo $COLOUR; hostname; cat /greeting; ` +
			`touch /x 2>/dev/null || echo read-only; touch /greeting 2>/dev/null || echo kept; touch /scratch/x && echo scratch`
		want := "1000\n1001\n/tmp\nblue\nbox\nhello from the host\nread-only\nkept\nscratch\n"
		if got := l.ctr(t, "task", "exec", "--exec-id", "e1", "c1", "/bin/sh", "-c", script); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	})
	t.Run("exec status", func(t *testing.T) {
		_, err := l.try(t, "task", "exec", "--exec-id", "e2", "c1", "/bin/sh", "-c", "echo oops >&2; exit 7")
		var exit *harness.CtrError
		if !errors.As(err, &exit) || exit.Status != 7 || !strings.Contains(exit.Stderr, "oops\n") {
			t.Errorf("got %v, want exit status 7", err)
		}
	})
	t.Run("views", func(t *testing.T) {
		l.wantTask(t, "c1", "RUNNING")
		if ps := l.ctr(t, "task", "ps", "c1"); len(strings.Fields(ps)) < 3 {
			t.Errorf("task ps says %q", ps)
		}
		if metrics := l.ctr(t, "task", "metrics", "--format", "json", "c1"); !strings.Contains(metrics, `"usage_limit": 67108864`) {
			t.Errorf("metrics are %s", metrics)
		}
		if list := l.ctr(t, "container", "list", "labels.team==green"); !strings.Contains(list, "c1") {
			t.Errorf("by its label, the list is %q", list)
		}
	})
	t.Run("pause", func(t *testing.T) {
		l.ctr(t, "task", "pause", "c1")
		l.wantTask(t, "c1", "PAUSED")
		l.ctr(t, "task", "resume", "c1")
		l.wantTask(t, "c1", "RUNNING")
	})
	if _, err := l.try(t, "task", "delete", "c1"); err == nil {
		t.Error("a running task was deleted")
	}
	l.ctr(t, "task", "kill", "--signal", "SIGTERM", "c1")
	l.waitLog(t, log, "up\nbye\n")
	l.wantTask(t, "c1", "STOPPED")
	l.ctr(t, "task", "delete", "c1")
	l.ctr(t, "container", "delete", "c1")
}

// wantTask waits until ctr lists a task in a state: an exit is told a moment after the program has written its last.
func (l *ctrLab) wantTask(t *testing.T, id, state string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), lifeBudget)
	defer cancel()
	err := harness.Eventually(ctx, func(ctx context.Context) error {
		list, err := l.node.Ctr(ctx, "task", "list")
		for line := range strings.Lines(list) {
			if fields := strings.Fields(line); len(fields) == 3 && fields[0] == id && fields[2] == state {
				return nil
			}
		}
		return fmt.Errorf("task %s is not %s: %w\n%s", id, state, err, list)
	})
	if err != nil {
		t.Fatal(err)
	}
}

func (l *ctrLab) waitLog(t *testing.T, path, want string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), lifeBudget)
	defer cancel()
	err := harness.Eventually(ctx, func(context.Context) error {
		got, err := os.ReadFile(path)
		if err == nil && string(got) != want {
			err = fmt.Errorf("log is %q, want %q", got, want)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// terminal runs a shell in the foreground, on a terminal, as a person would.
func (l *ctrLab) terminal(t *testing.T) {
	s := l.onTerminal(t, l.runArgs([]string{"--rm", "--tty", "--cni"}, "c2", "/bin/sh")...)
	s.say("test -t 0 -a -t 1 -a -t 2 && echo terminal-$((40+2))\r", "terminal-42\r")
	if err := s.pty.Resize(console.WinSize{Width: 132, Height: 43}); err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Process.Signal(syscall.SIGWINCH); err != nil {
		t.Fatal(err)
	}
	s.say("until test \"$(stty size)\" = '43 132'; do sleep 0.1; done; echo size-$((1+1))\r", "size-2\r")
	s.say("exit 5\r", "")
	var exit *exec.ExitError
	if err := s.cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 5 {
		t.Errorf("ctr ended with %v, want the shell's exit status 5", err)
	}
	if list := l.ctr(t, "container", "list", "-q"); list != "" {
		t.Errorf("containers are left: %q", list)
	}
}

// session is a program on a terminal.
type session struct {
	t    *testing.T
	cmd  *exec.Cmd
	pty  console.Console
	seen strings.Builder
}

func (l *ctrLab) onTerminal(t *testing.T, args ...string) *session {
	t.Helper()
	pty, path, err := console.NewPty()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pty.Close() })
	tty, err := os.OpenFile(path, os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer tty.Close()
	cmd, err := l.node.CtrCommand(args...)
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(lifeBudget, func() { _ = cmd.Process.Kill() })
	t.Cleanup(func() { timer.Stop() })
	return &session{t: t, cmd: cmd, pty: pty}
}

// say types text and reads until the answer has come; none is awaited when it is empty.
func (s *session) say(text, answer string) {
	s.t.Helper()
	if _, err := s.pty.Write([]byte(text)); err != nil {
		s.t.Fatal(err)
	}
	buffer := make([]byte, 4096)
	for !strings.Contains(s.seen.String(), answer) {
		n, err := s.pty.Read(buffer)
		s.seen.Write(buffer[:n])
		if err != nil {
			s.t.Fatalf("no %q on the terminal but %q: %v", answer, s.seen.String(), err)
		}
	}
}

// twin runs an image that has the layers of the other one, and so its snapshots, but a key of its own.
func (l *ctrLab) twin(t *testing.T) {
	own := &ctrLab{node: l.node, image: encryptedImage(t, l.node), run: l.run}
	own.ctr(t, l.node.CtrPull(own.image)...)
	if out := own.ctr(t, own.runArgs([]string{"--rm", "--cni"}, "c3", "/bin/echo", "hello")...); out != "hello\n" {
		t.Errorf("got %q", out)
	}
	_, name, _ := strings.Cut(own.image, "/")
	repository, _, _ := strings.Cut(name, ":")
	if released, err := l.node.Broker.Released("kbs:///" + repository + "/key"); err != nil || len(released) == 0 {
		t.Errorf("the broker gave the key of the image that was run %d times: %v", len(released), err)
	}
}
