package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/containerd/errdefs"

	agentpb "github.com/coffer-project/coffer/proto/agent"
)

const (
	// inputChunk bounds the bytes of one call that brings input.
	inputChunk = 64 << 10
	// outputChunk bounds those of one that fetches output. A guest answers with what is there; one that keeps no more than
	// Linux's default of 64 KiB in its pipes never fills it.
	outputChunk = 256 << 10
)

// Process is one process in the guest: a container's first one, or an exec.
type Process struct {
	client            *Client
	container, execID string
}

// Process names a process; it makes no call. execID is empty for a container's first process.
func (c *Client) Process(container, execID string) *Process {
	return &Process{client: c, container: container, execID: execID}
}

// Wait returns the exit status, 128 plus the signal's number for a killed process. It has no deadline but ctx's.
func (p *Process) Wait(ctx context.Context) (uint32, error) {
	resp, err := p.client.WaitProcess(ctx, &agentpb.WaitProcessRequest{ContainerId: p.container, ExecId: p.execID})
	if err != nil {
		return 0, err
	}
	return uint32(resp.GetStatus()), nil
}

// Signal sends a signal to the process. For a container's first process Kata's agent understands an empty exec id
// with SIGKILL as "kill all", which ends that process too.
func (p *Process) Signal(ctx context.Context, signal uint32) error {
	_, err := p.client.SignalProcess(ctx, &agentpb.SignalProcessRequest{
		ContainerId: p.container, ExecId: p.execID, Signal: signal,
	})
	return err
}

// Resize sets the size of the process's terminal, in characters.
func (p *Process) Resize(ctx context.Context, width, height uint32) error {
	_, err := p.client.TtyWinResize(ctx, &agentpb.TtyWinResizeRequest{
		ContainerId: p.container, ExecId: p.execID, Row: height, Column: width,
	})
	return err
}

// CloseStdin ends the process's standard input.
func (p *Process) CloseStdin(ctx context.Context) error {
	_, err := p.client.CloseStdin(ctx, &agentpb.CloseStdinRequest{ContainerId: p.container, ExecId: p.execID})
	return err
}

// CopyStdout writes the process's output to w until it ends. It returns nil at the end of the output, and an error
// when w, the guest or ctx ends it early. With a terminal it carries the error output too.
func (p *Process) CopyStdout(ctx context.Context, w io.Writer) error {
	return p.copyOut(ctx, w, "stdout", p.client.ReadStdout)
}

// CopyStderr does the same for the error output of a process without a terminal.
func (p *Process) CopyStderr(ctx context.Context, w io.Writer) error {
	return p.copyOut(ctx, w, "stderr", p.client.ReadStderr)
}

type readFunc func(context.Context, *agentpb.ReadStreamRequest) (*agentpb.ReadStreamResponse, error)

func (p *Process) copyOut(ctx context.Context, w io.Writer, stream string, read readFunc) error {
	req := &agentpb.ReadStreamRequest{ContainerId: p.container, ExecId: p.execID, Len: outputChunk}
	for {
		resp, err := read(ctx, req)
		if err != nil {
			if endOfStream(err) {
				return nil
			}
			return fmt.Errorf("read %s of %s: %w", stream, p, err)
		}
		data := resp.GetData()
		if len(data) == 0 {
			return nil
		}
		if _, err := w.Write(data); err != nil {
			return fmt.Errorf("write %s of %s: %w", stream, p, err)
		}
	}
}

// CopyStdin sends r to the process's standard input and closes that at the end of r. It returns nil when all was sent
// or when the process went away meanwhile. It cannot interrupt a blocked r: the caller closes r to end it.
func (p *Process) CopyStdin(ctx context.Context, r io.Reader) error {
	buf := make([]byte, inputChunk)
	for {
		n, readErr := r.Read(buf)
		if n > 0 {
			if err := p.writeStdin(ctx, buf[:n]); err != nil {
				if endOfStream(err) {
					return nil
				}
				return fmt.Errorf("write stdin of %s: %w", p, err)
			}
		}
		if readErr == nil {
			continue
		}
		// Whatever ended r, the process must not wait for more.
		closeErr := p.CloseStdin(ctx)
		if closeErr != nil && !endOfStream(closeErr) {
			closeErr = fmt.Errorf("close stdin of %s: %w", p, closeErr)
		} else {
			closeErr = nil
		}
		if readErr != io.EOF {
			return errors.Join(fmt.Errorf("read stdin for %s: %w", p, readErr), closeErr)
		}
		return closeErr
	}
}

// writeStdin sends data, in as many calls as the guest needs to take it.
func (p *Process) writeStdin(ctx context.Context, data []byte) error {
	for len(data) > 0 {
		resp, err := p.client.WriteStdin(ctx, &agentpb.WriteStreamRequest{
			ContainerId: p.container, ExecId: p.execID, Data: data,
		})
		if err != nil {
			return err
		}
		taken := resp.GetLen()
		if taken == 0 || uint64(taken) > uint64(len(data)) {
			return fmt.Errorf("guest took %d of %d bytes: %w", taken, len(data), errdefs.ErrInternal)
		}
		data = data[taken:]
	}
	return nil
}

// String names the process in errors.
func (p *Process) String() string {
	if p.execID == "" || p.execID == p.container {
		return "container " + p.container
	}
	return "exec " + p.execID + " of container " + p.container
}

// endOfStream tells whether an error only means that the process has no such stream any more. Agents say so in
// different ways: the process or (by Kata's agent, as an invalid argument) its container is forgotten, the pipe is
// closed, or older ones answer an error that speaks of EOF.
func endOfStream(err error) bool {
	if errdefs.IsNotFound(err) || errdefs.IsInvalidArgument(err) {
		return true
	}
	if !errdefs.IsInternal(err) && !errdefs.IsUnknown(err) {
		return false
	}
	text := strings.ToLower(err.Error())
	return strings.Contains(text, "eof") || strings.Contains(text, "broken pipe") ||
		strings.Contains(text, "cannot get stream reader")
}
