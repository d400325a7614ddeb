package qemu

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/shim/netns"
)

// firstFD is the number of the first inherited descriptor after stdin, stdout and stderr.
const firstFD = 3

// stderrLines is how many of QEMU's last words are kept.
const stderrLines = 20

// outputDelay bounds the wait for QEMU's output after its end: a process that it left behind could keep the pipe open.
const outputDelay = 2 * time.Second

// process is a running QEMU.
type process struct {
	cmd    *exec.Cmd
	stderr *lines
	done   chan struct{} // closed when QEMU has ended and been reaped
	err    error         // what Wait said; valid once done is closed
}

// spawnOptions say in which surroundings QEMU runs.
type spawnOptions struct {
	// netNS is the path of its network namespace; empty for the caller's own.
	netNS string
	// files become its descriptors 3 and up. The caller keeps them.
	files []*os.File
	// cpus are the processors that it is bound to from its first instruction on, so that all its memory comes from near
	// them; nil for the caller's.
	cpus *unix.CPUSet
}

// spawn starts QEMU.
func spawn(binary string, args []string, options spawnOptions) (*process, error) {
	p := &process{
		cmd:    exec.Command(binary, args...),
		stderr: &lines{keep: stderrLines},
		done:   make(chan struct{}),
	}
	reader, writer := io.Pipe()
	p.cmd.Stdout, p.cmd.Stderr = writer, writer
	p.cmd.ExtraFiles = options.files
	p.cmd.Dir = "/"
	p.cmd.Env = []string{"LC_ALL=C", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	p.cmd.WaitDelay = outputDelay
	p.cmd.SysProcAttr = &syscall.SysProcAttr{
		// A process group of its own: signals to the shim's group are the shim's to handle.
		Setpgid:   true,
		Pdeathsig: syscall.SIGKILL,
	}
	read := make(chan struct{})
	go func() { defer close(read); p.stderr.readFrom(reader) }()

	started := make(chan error, 1)
	// The death signal comes when the thread that forked ends, so the thread is QEMU's until QEMU has ended.
	netns.Thread(func() {
		if options.netNS != "" {
			if err := netns.Enter(options.netNS); err != nil {
				started <- err
				return
			}
		}
		if options.cpus != nil {
			if err := unix.SchedSetaffinity(0, options.cpus); err != nil {
				started <- fmt.Errorf("bind to processors: %w", err)
				return
			}
		}
		if err := p.cmd.Start(); err != nil {
			started <- explainStart(binary, err)
			return
		}
		started <- nil
		p.err = p.cmd.Wait()
		writer.Close()
		<-read
		close(p.done)
	})
	if err := <-started; err != nil {
		writer.Close()
		<-read
		return nil, err
	}
	return p, nil
}

func explainStart(binary string, err error) error {
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("%w: QEMU is not installed at %s: install it (Debian: qemu-system-x86) or set hypervisor.path",
			errdefs.ErrFailedPrecondition, binary)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("%w: QEMU at %s cannot be executed: %w", errdefs.ErrFailedPrecondition, binary, err)
	}
	return fmt.Errorf("start %s: %w", binary, err)
}

// checkBinary reports a QEMU that is not there before anything is prepared.
func checkBinary(path string) error {
	if err := unix.Access(path, unix.X_OK); err != nil {
		return explainStart(path, err)
	}
	return nil
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// ended tells whether QEMU has ended, be it reaped or not.
func (p *process) ended() bool {
	return errors.Is(p.cmd.Process.Signal(syscall.Signal(0)), os.ErrProcessDone)
}

// kill ends QEMU at once. It does nothing after the end.
func (p *process) kill() {
	// os.Process signals by pidfd, so that no other process can be hit.
	_ = p.cmd.Process.Kill()
}

// lastWords describes how QEMU ended by itself. It is legal once done is closed.
func (p *process) lastWords() string {
	text := "ended with " + p.cmd.ProcessState.String()
	if status, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signal() == syscall.SIGKILL {
		text += " (by hand, or by the kernel for want of memory: see dmesg)"
	}
	if said := p.stderr.last(stderrLines); len(said) > 0 {
		text += ", saying: " + quote(said)
	}
	return text
}

// pair is a socket pair: a connection for the shim and a file for QEMU to inherit.
func pair(name string) (net.Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make %s socket: %w", name, err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), name), os.NewFile(uintptr(fds[1]), name)
	defer ours.Close() // FileConn makes its own copy
	conn, err := net.FileConn(ours)
	if err != nil {
		theirs.Close()
		return nil, nil, fmt.Errorf("make %s socket: %w", name, err)
	}
	return conn, theirs, nil
}
