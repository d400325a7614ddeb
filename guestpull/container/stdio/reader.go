package stdio

import (
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxChunk bounds the memory that one read of the host can make the guest allocate.
	maxChunk = 256 << 10
	// firstChunk is what a read asks for while it waits. A process may be silent for ever, so what waits for it is small.
	firstChunk = 4 << 10
	// terminalChunk is how much of a terminal's output is gathered before it is answered. A terminal gives out 4 KiB at a
	// time at most, and a call of the host costs more than that.
	terminalChunk = 64 << 10
	// terminalPatience bounds the time of that; a person who waits for output does not notice it.
	terminalPatience = 20 * time.Millisecond
	// drainIdle is how long a read waits for more output once the process has exited. A child that the process left behind
	// may hold the pipe open for ever; without a bound the host would never see the end of the stream.
	drainIdle = time.Second
)

// Reader is one output stream of a process. Its methods may be called by several goroutines at a time.
type Reader struct {
	f        *os.File
	terminal bool          // the file is a terminal's master
	patience time.Duration // how long a terminal's output is gathered
	turn     chan struct{} // one read at a time, so that chunks keep their order

	mu        sync.Mutex
	exited    bool
	gathering bool      // the file's deadline is that of more
	deadline  time.Time // the file's otherwise
	ended     bool
}

func newReader(f *os.File, terminal bool) *Reader {
	return &Reader{f: f, terminal: terminal, patience: terminalPatience, turn: make(chan struct{}, 1)}
}

// Read returns the next chunk of at most size bytes. It blocks until there is output; an empty chunk without an error is
// the end of the stream, and every later call answers the same. It returns ctx's error when ctx ends first.
func (r *Reader) Read(ctx context.Context, size int) ([]byte, error) {
	select {
	case r.turn <- struct{}{}:
		defer func() { <-r.turn }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if r.hasEnded() {
		return nil, nil
	}
	stop := context.AfterFunc(ctx, func() { _ = r.f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	size = min(size, maxChunk)
	buf := make([]byte, min(size, firstChunk))
	for {
		r.arm()
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		n, err := r.f.Read(buf)
		if n > 0 {
			return r.more(ctx, buf[:n], size), nil
		}
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			if ctx.Err() == nil && r.idle() {
				return r.last(buf), nil
			}
		case err == nil, errors.Is(err, unix.EINTR):
		case isEnd(err):
			r.end()
			return nil, nil
		default:
			return nil, err
		}
	}
}

// arm sets the deadline of the next wait. A late cancellation of an earlier call may have left one behind.
func (r *Reader) arm() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.deadline = time.Time{}
	if r.exited {
		r.deadline = time.Now().Add(drainIdle)
	}
	_ = r.f.SetReadDeadline(r.deadline)
}

// more adds to the beginning of a chunk what there is besides, up to size bytes in all. Errors are left to the next read,
// which meets them again.
func (r *Reader) more(ctx context.Context, chunk []byte, size int) []byte {
	// A terminal hands out a little less than it holds.
	if size <= len(chunk) || len(chunk) < firstChunk/2 {
		return chunk
	}
	if !r.terminal {
		return r.take(chunk, min(size, len(chunk)+r.waiting()))
	}
	r.mu.Lock()
	r.gathering = true
	_ = r.f.SetReadDeadline(time.Now().Add(r.patience))
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.gathering = false
	}()
	// The cancellation of ctx sets a deadline too, which may have been before this one.
	for size = min(size, terminalChunk); len(chunk) < size && ctx.Err() == nil; {
		longer := r.take(chunk, size)
		if len(longer) == len(chunk) {
			break
		}
		chunk = longer
	}
	return chunk
}

// take makes one read that fills up a chunk to size bytes at most.
func (r *Reader) take(chunk []byte, size int) []byte {
	have := len(chunk)
	if size <= have {
		return chunk
	}
	chunk = slices.Grow(chunk, size-have)
	n, _ := r.f.Read(chunk[have:size])
	return chunk[:have+max(n, 0)]
}

// waiting is how many bytes the pipe holds; 0 when it cannot be told.
func (r *Reader) waiting() (n int) {
	conn, err := r.f.SyscallConn()
	if err != nil {
		return 0
	}
	_ = conn.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
	if err != nil {
		return 0
	}
	return n
}

// exit tells the stream that its process is gone: from now on it ends after drainIdle without output.
func (r *Reader) exit() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.exited = true
	r.deadline = time.Now().Add(drainIdle)
	if !r.gathering {
		_ = r.f.SetReadDeadline(r.deadline)
	}
}

func (r *Reader) idle() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.exited && !time.Now().Before(r.deadline)
}

// last takes what arrived between the deadline and now, so that giving up loses nothing that is already in the pipe.
func (r *Reader) last(buf []byte) []byte {
	_ = r.f.SetReadDeadline(time.Time{})
	conn, err := r.f.SyscallConn()
	if err != nil {
		r.end()
		return nil
	}
	n := 0
	err = conn.Read(func(fd uintptr) bool {
		n, err = unix.Read(int(fd), buf)
		return true
	})
	if err != nil || n <= 0 {
		r.end()
		return nil
	}
	return buf[:n]
}

func (r *Reader) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ended = true
}

func (r *Reader) hasEnded() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ended
}

// isEnd: a pipe ends with EOF, a pseudo-terminal whose other side is closed with EIO, and a removed process's stream is closed.
func isEnd(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, unix.EIO) || errors.Is(err, os.ErrClosed)
}
