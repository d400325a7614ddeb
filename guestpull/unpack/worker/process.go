package worker

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/guestpull/unpack"
)

// process is a running worker as its parent sees it.
type process struct {
	conn   *os.File
	pidfd  int
	exit   <-chan int
	ring   *ring
	layer  unpack.Layer
	limits unpack.Limits
	space  func() (free int64, err error)

	free    chan struct{} // one for each block that may be written
	outcome chan outcome  // gets one
	heard   chan struct{} // closed when nobody listens any more
}

type outcome struct {
	res        *unpack.Result
	noLandlock bool
	err        error
}

// launch starts a worker for a layer, which comes through the ring.
func (c *Client) launch(dir string, l unpack.Layer, r *ring) (_ *process, retErr error) {
	var undo []func() error
	defer func() {
		for _, f := range undo {
			retErr = errors.Join(retErr, f())
		}
	}()
	target, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	undo = append(undo, target.Close)
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	undo = append(undo, theirs.Close)

	p := &process{
		conn: ours, pidfd: -1, ring: r, layer: l, limits: c.Limits(), space: func() (int64, error) { return c.Space(dir) },
		free: make(chan struct{}, slots), outcome: make(chan outcome, 1), heard: make(chan struct{}),
	}
	for range slots {
		p.free <- struct{}{}
	}
	cmd := exec.Command(c.program)
	cmd.Dir = "/"
	// Few threads, which all have to enter the jail; there may be more afterwards.
	cmd.Env = []string{"GOMAXPROCS=1", "GOTRACEBACK=none"}
	cmd.ExtraFiles = []*os.File{theirs, r.file, target} // socketFD and so on
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, PidFD: &p.pidfd}
	if _, p.exit, err = c.start(cmd); err != nil {
		return nil, errors.Join(err, ours.Close())
	}
	go p.listen()
	raw, err := json.Marshal(job{Compression: l.Compression, Digest: l.Digest, Limits: p.limits, Devices: c.Devices()})
	if err == nil {
		err = send(p.conn, kindJob, raw)
	}
	if err != nil {
		return nil, errors.Join(err, p.end())
	}
	return p, nil
}

func socketPair() (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make socket pair: %w", err)
	}
	theirs = os.NewFile(uintptr(fds[1]), "parent")
	if err := unix.SetNonblock(fds[0], true); err != nil {
		return nil, nil, errors.Join(err, unix.Close(fds[0]), theirs.Close())
	}
	return os.NewFile(uintptr(fds[0]), "worker"), theirs, nil
}

// run feeds the worker and returns its answer.
func (p *process) run(ctx context.Context, r io.Reader, spare func() bool) (*unpack.Result, bool, error) {
	for block := 0; ; block = (block + 1) % slots {
		select {
		case <-p.free:
		case out := <-p.outcome:
			return p.early(out)
		case <-ctx.Done():
			return nil, false, ctx.Err()
		}
		n, err := unpack.Fill(r, p.ring.block(block))
		if err != nil && err != io.EOF { //nolint:errorlint // a wrapped EOF is a broken stream
			return nil, false, err
		}
		// A write that fails meets a worker that ended, of which the listener will know more.
		sent := error(nil)
		if n > 0 {
			sent = send(p.conn, kindBlock, blockMessage(n, spare()))
		}
		if err == io.EOF && sent == nil { //nolint:errorlint // as above
			sent = send(p.conn, kindEnd, nil)
		}
		if err == nil && sent == nil {
			continue
		}
		select {
		case out := <-p.outcome:
			if sent != nil {
				return p.early(out)
			}
			return out.res, out.noLandlock, out.err
		case <-ctx.Done():
			return nil, false, ctx.Err()
		}
	}
}

// early is the outcome of a worker that was not told the end of the stream yet, and so cannot be done.
func (p *process) early(out outcome) (*unpack.Result, bool, error) {
	if out.err == nil {
		out.err = errProtocol
	}
	return nil, false, out.err
}

// listen takes what the worker says until the outcome is known.
func (p *process) listen() {
	defer close(p.heard)
	for r := bufio.NewReaderSize(p.conn, 512); ; {
		kind, content, err := receive(r)
		if err != nil && !errors.Is(err, errProtocol) {
			err = ErrEnded
		}
		if err == nil {
			switch kind {
			case kindFree:
				err = p.freed()
			case kindQuestion:
				err = p.answer()
			case kindResult:
				res, noLandlock, err := decode(content, p.layer.Digest, p.limits)
				p.outcome <- outcome{res, noLandlock, err}
				return
			case kindFailure:
				err = decodeFailure(content)
			default:
				err = errProtocol
			}
		}
		if err != nil {
			p.outcome <- outcome{err: err}
			return
		}
	}
}

func (p *process) freed() error {
	select {
	case p.free <- struct{}{}:
		return nil
	default:
		return errProtocol
	}
}

func (p *process) answer() error {
	free, err := p.space()
	if err != nil {
		return err
	}
	if err := send(p.conn, kindSpace, binary.LittleEndian.AppendUint64(nil, uint64(free))); err != nil {
		return ErrEnded
	}
	return nil
}

// end kills the worker and returns when it is gone, and with it whatever it had open.
func (p *process) end() error {
	err := unix.PidfdSendSignal(p.pidfd, unix.SIGKILL, nil, 0)
	if errors.Is(err, unix.ESRCH) {
		err = nil // it ended by itself
	}
	if err != nil {
		return fmt.Errorf("end process that unpacks: %w", err)
	}
	<-p.exit
	err = errors.Join(unix.Close(p.pidfd), p.conn.Close())
	<-p.heard
	return err
}
