package worker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/coffer-project/coffer/guestpull/unpack"
)

// ErrEnded is a worker that ended before its layer was done.
var ErrEnded = fmt.Errorf("process that unpacks the layer ended early: %w", errdefs.ErrAborted)

// Start starts a command and returns where its exit status will come, once; nobody else waits for the process.
type Start func(cmd *exec.Cmd) (pid int, exit <-chan int, err error)

// StartProcess is a Start for programs that do not reap all children by themselves.
func StartProcess(cmd *exec.Cmd) (int, <-chan int, error) {
	if err := cmd.Start(); err != nil {
		return 0, nil, err
	}
	exit := make(chan int, 1)
	go func() {
		_ = cmd.Wait() // the state says all
		exit <- cmd.ProcessState.ExitCode()
	}()
	return cmd.Process.Pid, exit, nil
}

// Client unpacks layers in workers. It is safe for concurrent use.
type Client struct {
	*unpack.Unpacker
	program    string
	start      Start
	processors int32
	running    atomic.Int32
	rings      rings
	unlocked   sync.Once
}

// Beside returns the worker's program, which lies beside the running one.
func Beside() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find %s: %w", Program, err)
	}
	path := filepath.Join(filepath.Dir(self), Program)
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("the program that unpacks layers must lie beside %s: %w", filepath.Base(self), err)
	}
	return path, nil
}

// New returns a Client whose workers keep the limits of u, which completes layers itself. program calls Main;
// it must be built without cgo.
func New(u *unpack.Unpacker, program string, start Start) *Client {
	return &Client{Unpacker: u, program: program, start: start, processors: int32(runtime.GOMAXPROCS(0))}
}

// spare reports whether there are more processors than layers.
func (c *Client) spare() bool { return c.running.Load() < c.processors }

// Unpack does what unpack.Unpacker's does, in a process apart. r is read in large blocks by the calling goroutine, and not
// any more when Unpack returns; its errors are returned as they are. ErrEnded is a worker that died, ErrInternal one that
// broke the rules or could not be locked in.
func (c *Client) Unpack(ctx context.Context, dir string, r io.Reader, l unpack.Layer) (_ *unpack.Result, retErr error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	c.running.Add(1)
	defer c.running.Add(-1)
	memory, err := c.rings.take()
	if err != nil {
		return nil, err
	}
	done := c.rings.give
	defer func() { retErr = errors.Join(retErr, done(memory)) }()
	p, err := c.launch(dir, l, memory)
	if err != nil {
		done = c.rings.drop // it may have got as far as to run
		return nil, fmt.Errorf("start process to unpack the layer: %w", err)
	}
	defer func() {
		if err := p.end(); err != nil {
			done = c.rings.drop
			retErr = errors.Join(retErr, err)
		}
	}()
	res, noLandlock, err := p.run(ctx, r, c.spare)
	if err != nil {
		return nil, err
	}
	if noLandlock {
		c.unlocked.Do(func() {
			log.G(ctx).Warn("kernel has no Landlock 2: processes that unpack layers are held by chroot, seccomp and capabilities alone")
		})
	}
	return res, nil
}
