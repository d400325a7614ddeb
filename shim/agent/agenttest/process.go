package agenttest

import (
	"bytes"
	"context"
	"io"
	"sync"
)

// Process is a process of the fake guest, steered by the test. It runs from its start until Exit, or until it gets
// SIGKILL or SIGTERM.
type Process struct {
	stdout, stderr *pipe

	mu       sync.Mutex
	stdin    bytes.Buffer
	stdinEOF chan struct{}
	started  chan struct{}
	exited   chan struct{}
	status   int32
}

func newProcess() *Process {
	return &Process{
		stdout: newPipe(), stderr: newPipe(),
		stdinEOF: make(chan struct{}), started: make(chan struct{}), exited: make(chan struct{}),
	}
}

// Print writes to the process's standard output.
func (p *Process) Print(text string) { p.stdout.write([]byte(text)) }

// PrintError writes to the process's error output.
func (p *Process) PrintError(text string) { p.stderr.write([]byte(text)) }

// Exit ends the process with a status; its output ends once it is read. Only the first call counts.
func (p *Process) Exit(status int32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if isClosed(p.exited) {
		return
	}
	p.status = status
	close(p.exited)
	p.stdout.close()
	p.stderr.close()
}

// Started is closed once the process runs.
func (p *Process) Started() <-chan struct{} { return p.started }

// StdinClosed is closed once the host has closed the standard input.
func (p *Process) StdinClosed() <-chan struct{} { return p.stdinEOF }

// Stdin is what the host has written so far.
func (p *Process) Stdin() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stdin.String()
}

func (p *Process) start() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !isClosed(p.started) {
		close(p.started)
	}
}

func (p *Process) running() bool { return isClosed(p.started) && !isClosed(p.exited) }

func (p *Process) writeStdin(data []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stdin.Write(data)
}

func (p *Process) closeStdin() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !isClosed(p.stdinEOF) {
		close(p.stdinEOF)
	}
}

func (p *Process) wait(ctx context.Context) (int32, error) {
	select {
	case <-p.exited:
		return p.status, nil
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// pipe is an unbounded buffer whose reader waits for data or the end.
type pipe struct {
	mu      sync.Mutex
	buf     bytes.Buffer
	ended   bool
	changed chan struct{}
}

func newPipe() *pipe { return &pipe{changed: make(chan struct{})} }

func (p *pipe) write(data []byte) { p.change(func() { p.buf.Write(data) }) }

func (p *pipe) close() { p.change(func() { p.ended = true }) }

func (p *pipe) change(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
	close(p.changed)
	p.changed = make(chan struct{})
}

// read returns up to limit bytes, or none at the end.
func (p *pipe) read(ctx context.Context, limit int) ([]byte, error) {
	for {
		p.mu.Lock()
		if p.buf.Len() > 0 {
			out := make([]byte, min(limit, p.buf.Len()))
			_, err := io.ReadFull(&p.buf, out)
			p.mu.Unlock()
			return out, err
		}
		ended, changed := p.ended, p.changed
		p.mu.Unlock()
		if ended {
			return nil, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
