package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	startTimeout = 30 * time.Second
	stopTimeout  = 20 * time.Second
)

// Process is a daemon of the node with its log file.
type Process struct {
	Name    string
	LogPath string

	cmd      *exec.Cmd
	done     chan struct{}
	stopping atomic.Bool
	exit     error // valid once done is closed
}

// startProcess runs cmd with output to <dir>/<name>.log and returns once it says READY=1 by the systemd protocol.
func startProcess(ctx context.Context, dir, name string, cmd *exec.Cmd) (*Process, error) {
	socket := filepath.Join(dir, name+".notify")
	_ = os.Remove(socket)
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	defer os.Remove(socket)
	defer notify.Close()

	if cmd.Env == nil {
		cmd.Env = os.Environ()
	}
	cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+socket)
	p, err := launch(dir, name, cmd)
	if err != nil {
		return nil, err
	}
	ready := make(chan error, 1)
	go func() { ready <- readNotify(notify) }()
	return p, p.waitReady(ctx, ready)
}

// startProbed runs cmd and returns once probe succeeds; for daemons that do not speak the systemd protocol.
func startProbed(ctx context.Context, dir, name string, cmd *exec.Cmd, probe func(context.Context) error) (*Process, error) {
	p, err := launch(dir, name, cmd)
	if err != nil {
		return nil, err
	}
	ready := make(chan error, 1)
	probeCtx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	go func() { ready <- Eventually(probeCtx, probe) }()
	return p, p.waitReady(ctx, ready)
}

func launch(dir, name string, cmd *exec.Cmd) (*Process, error) {
	p := &Process{Name: name, LogPath: filepath.Join(dir, name+".log"), cmd: cmd, done: make(chan struct{})}
	log, err := os.OpenFile(p.LogPath, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	// A signal to the terminal's process group must reach the harness alone, which then ends things in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		p.exit = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

func (p *Process) waitReady(ctx context.Context, ready <-chan error) error {
	timer := time.NewTimer(startTimeout)
	defer timer.Stop()
	var err error
	select {
	case err = <-ready:
	case <-p.done:
		err = fmt.Errorf("it ended at once: %v", p.exit) //nolint:errorlint // nil when it reported success
	case <-timer.C:
		err = fmt.Errorf("it was not ready after %s", startTimeout)
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		_ = p.Kill()
		return fmt.Errorf("start %s: %w; its last lines:\n%s", p.Name, err, p.Tail(15))
	}
	return nil
}

func readNotify(conn *net.UnixConn) error {
	_ = conn.SetReadDeadline(time.Now().Add(startTimeout))
	buf := make([]byte, 4096)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return err
		}
		for line := range bytes.SplitSeq(buf[:n], []byte("\n")) {
			if bytes.Equal(line, []byte("READY=1")) {
				return nil
			}
		}
	}
}

// PID is the process id of the daemon itself: nsenter replaces itself by it.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Stop ends the daemon by SIGTERM, and by SIGKILL when it does not end in time, which is an error.
func (p *Process) Stop() error {
	p.stopping.Store(true)
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop %s: %w", p.Name, err)
	}
	timer := time.NewTimer(stopTimeout)
	defer timer.Stop()
	select {
	case <-p.done:
		return nil
	case <-timer.C:
		_ = p.Kill()
		return fmt.Errorf("stop %s: still running %s after SIGTERM; its last lines:\n%s", p.Name, stopTimeout, p.Tail(10))
	}
}

// Kill ends the daemon by SIGKILL and waits for its end.
func (p *Process) Kill() error {
	p.stopping.Store(true)
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill %s: %w", p.Name, err)
	}
	<-p.done
	return nil
}

// Tail returns the last lines of the daemon's log.
func (p *Process) Tail(lines int) string {
	content, err := os.ReadFile(p.LogPath)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimRight(string(content), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// Eventually calls probe with growing pauses until it succeeds or ctx ends; the error is then probe's last one.
// It is for waiting on other people's programs, which give no event to wait for.
func Eventually(ctx context.Context, probe func(context.Context) error) error {
	pause := 5 * time.Millisecond
	for {
		err := probe(ctx)
		if err == nil {
			return nil
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("gave up: %w", err)
		case <-timer.C:
		}
		pause = min(pause*3/2, 250*time.Millisecond)
	}
}
