package stdio

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// maxChunk bounds the memory that one read of the host can make the guest allocate: a pipe holds no more by default.
const maxChunk = 64 << 10

// drainIdle is how long a read waits for more output once the process has exited. A child that the process left behind
// may hold the pipe open for ever; without a bound the host would never see the end of the stream.
const drainIdle = time.Second

// Reader is one output stream of a process. Its methods may be called by several goroutines at a time.
type Reader struct {
	f    *os.File
	turn chan struct{} // one read at a time, so that chunks keep their order

	mu       sync.Mutex
	exited   bool
	deadline time.Time
	ended    bool
}

func newReader(f *os.File) *Reader {
	return &Reader{f: f, turn: make(chan struct{}, 1)}
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
	buf := make([]byte, min(size, maxChunk))
	for {
		r.arm()
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		n, err := r.f.Read(buf)
		if n > 0 {
			return buf[:n], nil
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

// exit tells the stream that its process is gone: from now on it ends after drainIdle without output.
func (r *Reader) exit() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.exited = true
	r.deadline = time.Now().Add(drainIdle)
	_ = r.f.SetReadDeadline(r.deadline)
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
