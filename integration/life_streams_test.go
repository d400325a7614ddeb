package integration

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coffer-project/coffer/integration/harness"
)

// lifeExecSync runs programs in a running container and compares what comes back.
func lifeExecSync(t *testing.T, l *lab) {
	c := l.sleeper(t, nil)
	big := strings.Repeat("0123456789abcde\n", 2<<20/16)
	for name, tc := range map[string]struct {
		script         string
		stdout, stderr string
		code           int32
	}{
		"silence":  {script: "true"},
		"streams":  {script: "echo out; echo err >&2; exit 7", stdout: "out\n", stderr: "err\n", code: 7},
		"signal":   {script: "kill -KILL $$", code: 137},
		"large":    {script: "yes 0123456789abcde | head -c 2097152", stdout: big},
		"no stdin": {script: "cat; echo end", stdout: "end\n"},
		"child":    {script: "sleep 1000 >/dev/null 2>&1 & echo started", stdout: "started\n"},
	} {
		t.Run(name, func(t *testing.T) {
			resp, err := c.ExecSync(l.ctx(t), "/bin/sh", "-c", tc.script)
			if err != nil {
				t.Fatal(err)
			}
			if string(resp.Stdout) != tc.stdout || string(resp.Stderr) != tc.stderr || resp.ExitCode != tc.code {
				t.Errorf("status %d, %d bytes of stdout %.100q, stderr %.200q; want %d, %d bytes %.100q, %q", resp.ExitCode,
					len(resp.Stdout), resp.Stdout, resp.Stderr, tc.code, len(tc.stdout), tc.stdout, tc.stderr)
			}
		})
	}
	t.Run("missing program", func(t *testing.T) {
		resp, err := c.ExecSync(l.ctx(t), "/bin/nothing")
		if err == nil || !strings.Contains(err.Error(), "/bin/nothing") {
			t.Errorf("got %v, %v; want an error that names the program", resp, err)
		}
	})
	t.Run("timeout", func(t *testing.T) {
		_, err := l.node.CRI.Runtime.ExecSync(l.ctx(t), &runtime.ExecSyncRequest{
			ContainerId: c.ID, Cmd: []string{"/bin/sleep", "4321"}, Timeout: 1,
		})
		if status.Code(err) != codes.DeadlineExceeded {
			t.Errorf("got %v, want a timeout", err)
		}
		if processes := l.sh(t, c, "ps -o args"); strings.Contains(processes, "sleep 4321") {
			t.Errorf("the program goes on after its timeout:\n%s", processes)
		}
	})
}

// lifeExecTerminal runs a shell on a terminal.
func lifeExecTerminal(t *testing.T, l *lab) {
	c := l.sleeper(t, nil)
	s, err := l.node.Exec(l.ctx(t), c, true, "/bin/sh")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	useTerminal(t, l, s, 6)
	var exit harness.ExitError
	if err := s.Wait(l.ctx(t)); !errors.As(err, &exit) || exit != "6" {
		t.Errorf("the shell ended with %v, want exit status 6", err)
	}
}

// useTerminal talks to a shell on a terminal and lets it end with a status.
func useTerminal(t *testing.T, l *lab, s *harness.Stream, status int) {
	t.Helper()
	ctx := l.ctx(t)
	say := func(text, want string) {
		t.Helper()
		if err := s.Send(text + "\n"); err != nil {
			t.Fatal(err)
		}
		if err := s.Expect(ctx, want); err != nil {
			t.Fatal(err)
		}
	}
	// The arithmetic tells the shell's answer from the terminal's echo of the question.
	say("test -t 0 -a -t 1 -a -t 2 && echo terminal-$((40+2))", "terminal-42\r\n")
	if err := s.Resize(132, 43); err != nil {
		t.Fatal(err)
	}
	// The size travels beside the text, so the shell may see the text first.
	say("until test \"$(stty size)\" = '43 132'; do sleep 0.1; done; echo size-$((1+1))", "size-2\r\n")
	if err := s.Send(fmt.Sprintf("exit %d\n", status)); err != nil {
		t.Fatal(err)
	}
}

// lifeAttachTerminal attaches to a container that runs on a terminal.
func lifeAttachTerminal(t *testing.T, l *lab) {
	c := l.start(t, func(config *runtime.ContainerConfig) { config.Tty, config.Stdin = true, true }, "/bin/sh")
	s, err := l.node.Attach(l.ctx(t), c, true, true)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	useTerminal(t, l, s, 5)
	if status := l.wait(t, c); status.ExitCode != 5 {
		t.Errorf("exit status %d, want 5", status.ExitCode)
	}
	if output, err := c.Output(); err != nil || !strings.Contains(output, "terminal-42") {
		t.Errorf("the log has %q, %v", output, err)
	}
}

// lifeAttachStdin writes into containers that read their input once, and again and again.
func lifeAttachStdin(t *testing.T, l *lab) {
	t.Run("once", func(t *testing.T) {
		c := l.start(t, func(config *runtime.ContainerConfig) { config.Stdin, config.StdinOnce = true, true }, "/bin/sha256sum")
		s, err := l.node.Attach(l.ctx(t), c, false, true)
		if err != nil {
			t.Fatal(err)
		}
		line := strings.Repeat("x", 4095) + "\n"
		for range 64 {
			if err := s.Send(line); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		// The end of the input must reach the container, or it waits for ever.
		if status := l.wait(t, c); status.ExitCode != 0 {
			t.Errorf("exit status %d", status.ExitCode)
		}
		want := fmt.Sprintf("%x  -\n", sha256.Sum256([]byte(strings.Repeat(line, 64))))
		if output, err := c.Output(); err != nil || output != want {
			t.Errorf("output %q, %v; want %q", output, err, want)
		}
	})
	t.Run("again", func(t *testing.T) {
		c := l.start(t, func(config *runtime.ContainerConfig) { config.Stdin = true },
			"/bin/sh", "-c", "while read -r line; do echo got-$line; test $line = last && exit 9; done")
		for _, word := range []string{"first", "last"} {
			s, err := l.node.Attach(l.ctx(t), c, false, true)
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Send(word + "\n"); err != nil {
				t.Fatal(err)
			}
			l.says(t, c, "got-"+word)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if status := l.wait(t, c); status.ExitCode != 9 {
			t.Errorf("exit status %d, want 9", status.ExitCode)
		}
	})
	t.Run("refused", func(t *testing.T) {
		c := l.create(t, nil, "/bin/true")
		if _, err := l.node.Attach(context.WithoutCancel(l.ctx(t)), c, false, false); err == nil {
			t.Error("attached to a container that does not run")
		}
	})
}
