package integration

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/integration/harness"
)

// loggerScript is a logger program: it takes its folder as the value of an argument.
const loggerScript = `#!/bin/sh
cd "$2"
echo $$ >pid
echo "$CONTAINER_NAMESPACE $CONTAINER_ID" >whose
exec 5>&-
cat <&3 >stdout &
cat <&4 >stderr
wait
echo ended >end
`

// logger gives the output of a detached container to a program, which ends with the container.
func (l *ctrLab) logger(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "logger")
	if err := os.WriteFile(program, []byte(loggerScript), 0o755); err != nil {
		t.Fatal(err)
	}
	uri := "binary://" + program + "?dir=" + dir
	l.ctr(t, l.runArgs([]string{"--detach", "--cni", "--log-uri", uri}, "c4", "/bin/sh", "-c",
		"echo out; echo err >&2; trap 'echo bye; exit 4' TERM; while :; do sleep 1; done")...)
	l.waitLog(t, filepath.Join(dir, "stdout"), "out\n")
	l.waitLog(t, filepath.Join(dir, "stderr"), "err\n")
	l.waitLog(t, filepath.Join(dir, "whose"), "default c4\n")
	l.ctr(t, "task", "kill", "--signal", "SIGTERM", "c4")
	l.waitLog(t, filepath.Join(dir, "stdout"), "out\nbye\n")
	l.wantTask(t, "c4", "STOPPED")
	l.ctr(t, "task", "delete", "c4")
	l.waitLog(t, filepath.Join(dir, "end"), "ended\n")
	if err := l.programGone(filepath.Join(dir, "pid")); err != nil {
		t.Error(err) // the deletion waits for its end
	}
	l.ctr(t, "container", "delete", "c4")

	_, err := l.try(t, l.runArgs([]string{"--detach", "--cni", "--log-uri", "binary://" + dir + "/none"}, "c5", "true")...)
	var failed *harness.CtrError
	if !errors.As(err, &failed) || !strings.Contains(failed.Stderr, "start logger program") {
		t.Errorf("a program that is not there: %v", err)
	}
	l.ctr(t, "container", "delete", "c5")
}

// programGone fails while the program that has written its process id to a file is there.
func (l *ctrLab) programGone(path string) error {
	raw, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil {
		return err
	}
	if err := unix.Kill(pid, 0); !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("process %d is there: %w", pid, err)
	}
	return nil
}

// attached talks to a container that another ctr has started.
func (l *ctrLab) attached(t *testing.T) {
	l.ctr(t, l.runArgs([]string{"--detach", "--cni"}, "c6", "/bin/sh", "-c", "read line; echo got $line; echo done >&2; exit 3")...)
	cmd, err := l.node.CtrCommand("task", "attach", "c6")
	if err != nil {
		t.Fatal(err)
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader("hello\n"), &stdout, &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(lifeBudget, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 3 {
		t.Errorf("ctr ended with %v, want the program's exit status 3", err)
	}
	if stdout.String() != "got hello\n" || !strings.Contains(stderr.String(), "done\n") {
		t.Errorf("got %q and %q", stdout.String(), stderr.String())
	}
	l.ctr(t, "container", "delete", "c6")
}
