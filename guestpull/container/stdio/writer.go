package stdio

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Writer is the input stream of a process. Its methods may be called by several goroutines at a time.
type Writer struct {
	f        *os.File
	terminal bool // the file is a terminal's master, shared with the output
	turn     chan struct{}

	mu     sync.Mutex
	closed bool
}

func newWriter(f *os.File, terminal bool) *Writer {
	return &Writer{f: f, terminal: terminal, turn: make(chan struct{}, 1)}
}

// Write hands p to the process and returns how much of it was taken. It blocks while the process does not read.
// FailedPrecondition: the stream was closed by either side.
func (w *Writer) Write(ctx context.Context, p []byte) (int, error) {
	select {
	case w.turn <- struct{}{}:
		defer func() { <-w.turn }()
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	if w.isClosed() {
		return 0, fmt.Errorf("stdin is closed: %w", errdefs.ErrFailedPrecondition)
	}
	stop := context.AfterFunc(ctx, func() { _ = w.f.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	done := 0
	for {
		_ = w.f.SetWriteDeadline(time.Time{})
		if err := ctx.Err(); err != nil {
			return done, err
		}
		n, err := w.f.Write(p[done:])
		done += n
		switch {
		case err == nil:
			return done, nil
		case errors.Is(err, os.ErrDeadlineExceeded):
		case errors.Is(err, unix.EPIPE), errors.Is(err, unix.EIO), errors.Is(err, os.ErrClosed):
			return done, fmt.Errorf("the process has closed its stdin: %w", errdefs.ErrFailedPrecondition)
		default:
			return done, err
		}
	}
}

// Close gives the process the end of its input. It is idempotent. A terminal has no end of input of its own (the
// program decides by its end-of-file character), so there it only refuses later writes.
func (w *Writer) Close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return
	}
	w.closed = true
	if !w.terminal {
		_ = w.f.Close()
	}
}

func (w *Writer) isClosed() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.closed
}
