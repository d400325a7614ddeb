package task

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/coffer-project/coffer/shim/netns"
)

const (
	// loggerReady is how long a logger program may take until it is ready.
	loggerReady = 30 * time.Second
	// loggerEnd is how long a logger program may take after the end of its input before it is asked to end, and after that
	// before it is killed.
	loggerEnd = 5 * time.Second
)

// loggerCommand is a logger program as a URI names it.
type loggerCommand struct {
	path string
	args []string
	// tells is set when the program writes a byte before it closes its last descriptor; otherwise only the closing counts,
	// and a program that crashes at once looks ready.
	tells bool
}

// isLogger tells whether an output names a logger program.
func isLogger(output string) bool {
	return strings.HasPrefix(output, "binary://") || strings.HasPrefix(output, "binary-v2://")
}

// parseLogger reads a URI of cio.BinaryIO: binary:///path?argument=value. Each key and each key's first value are an
// argument, in this order. It fails with errdefs.ErrInvalidArgument.
func parseLogger(output string) (*loggerCommand, error) {
	uri, err := url.Parse(output)
	if err != nil {
		return nil, fmt.Errorf("%.200q: %w", output, errdefs.ErrInvalidArgument)
	}
	if uri.Host != "" || !filepath.IsAbs(uri.Path) {
		return nil, fmt.Errorf("%.200q names no absolute path of a logger program, write binary:///path: %w", output, errdefs.ErrInvalidArgument)
	}
	values, err := url.ParseQuery(uri.RawQuery)
	if err != nil {
		return nil, fmt.Errorf("%.200q: %w: %w", output, err, errdefs.ErrInvalidArgument)
	}
	c := &loggerCommand{path: uri.Path, tells: uri.Scheme == "binary-v2"}
	for pair := range strings.SplitSeq(uri.RawQuery, "&") {
		raw, _, _ := strings.Cut(pair, "=")
		key, err := url.QueryUnescape(raw)
		if list := values[key]; err == nil && len(list) > 0 {
			c.args = append(c.args, key, list[0])
			delete(values, key) // a key counts once
		}
	}
	return c, nil
}

// logger is a program that takes the output of one process: its standard output as descriptor 3, its error output as 4.
// It says that it is ready by closing descriptor 5. That is the contract of containerd's own shim.
//
// The program sees the end of its input when the process has ended, or when the shim was killed; in that case it gets
// SIGTERM, too.
type logger struct {
	cmd            *exec.Cmd
	stdout, stderr *os.File      // what the shim writes to
	closed         chan struct{} // closed when the program is to end
	done           chan struct{} // closed when it was reaped
	grace          time.Duration // loggerEnd
}

// startLogger starts a logger program and waits until it is ready. id is what the program is told of the process. It
// fails with errdefs.ErrInvalidArgument, or errdefs.ErrFailedPrecondition when the program cannot be run or does not get
// ready.
func startLogger(ctx context.Context, output, namespace, id string) (_ *logger, retErr error) {
	c, err := parseLogger(output)
	if err != nil {
		return nil, err
	}
	l := &logger{cmd: exec.Command(c.path, c.args...), closed: make(chan struct{}), done: make(chan struct{}), grace: loggerEnd}
	var theirs []*os.File
	defer func() {
		for _, file := range theirs {
			file.Close()
		}
		if retErr != nil {
			l.closePipes()
		}
	}()
	for _, ours := range []**os.File{&l.stdout, &l.stderr} {
		reader, writer, err := os.Pipe()
		if err != nil {
			return nil, fmt.Errorf("make pipe: %w", err)
		}
		*ours, theirs = writer, append(theirs, reader)
	}
	ready, tell, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make pipe: %w", err)
	}
	defer ready.Close()
	theirs = append(theirs, tell)
	l.cmd.ExtraFiles = theirs
	l.cmd.Env = []string{"CONTAINER_ID=" + id, "CONTAINER_NAMESPACE=" + namespace}
	l.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := l.start(); err != nil {
		return nil, fmt.Errorf("start logger program: %w: %w", err, errdefs.ErrFailedPrecondition)
	}
	tell.Close()
	if err := l.awaitReady(ctx, ready, c.tells); err != nil {
		_ = l.cmd.Process.Kill()
		<-l.done
		return nil, fmt.Errorf("start logger program %s: %w", c.path, err)
	}
	go l.attend(log.G(ctx).WithField("logger", c.path))
	return l, nil
}

// start starts the program on a thread of its own, because the kernel sends the signal for the parent's death when the
// thread ends.
func (l *logger) start() error {
	started := make(chan error)
	netns.Thread(func() {
		err := l.cmd.Start()
		started <- err
		if err == nil {
			_ = l.cmd.Wait() // attend tells of an early end
			close(l.done)
		}
	})
	return <-started
}

func (l *logger) awaitReady(ctx context.Context, ready *os.File, tells bool) error {
	ctx, cancel := context.WithTimeout(ctx, loggerReady)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { ready.Close() })
	defer stop()
	n, err := ready.Read(make([]byte, 1))
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("it has not closed descriptor 5 to say that it is ready: %w: %w", ctx.Err(), errdefs.ErrFailedPrecondition)
	case err != nil && !errors.Is(err, io.EOF):
		return err
	case tells && n == 0:
		return fmt.Errorf("it ended, or closed descriptor 5, without a byte that says that it is ready: %w", errdefs.ErrFailedPrecondition)
	}
	return nil
}

// attend sees to the program's end: it may end by itself, is then asked, then killed.
func (l *logger) attend(entry *log.Entry) {
	select {
	case <-l.done:
		select {
		case <-l.closed:
		default:
			entry.WithField("state", l.cmd.ProcessState.String()).Error("logger program ended before its container, whose further output is lost")
		}
		return
	case <-l.closed:
	}
	for _, signal := range []os.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		select {
		case <-l.done:
			return
		case <-time.After(l.grace):
			entry.WithField("signal", signal.String()).Warn("logger program does not end by itself")
			_ = l.cmd.Process.Signal(signal) // by pidfd: no other process can be hit
		}
	}
}

// close lets the program end, and closes what has not become an output.
func (l *logger) close() {
	if l != nil {
		close(l.closed)
		l.closePipes()
	}
}

func (l *logger) closePipes() {
	for _, file := range []*os.File{l.stdout, l.stderr} {
		if file != nil {
			file.Close()
		}
	}
}

// wait waits until the program has ended after close.
func (l *logger) wait() {
	if l != nil {
		<-l.done
	}
}
