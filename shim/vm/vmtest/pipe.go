package vmtest

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// pipeBuffer is how much one direction holds before a writer blocks, about what a transport's window is.
const pipeBuffer = 256 << 10

// pipe is net.Pipe with a buffer: a real transport lets a writer go on before the reader reads, and ttrpc's two sides
// may write at the same time.
func pipe() (net.Conn, net.Conn) {
	a, b := newHalf(), newHalf()
	return &pipeConn{in: a, out: b}, &pipeConn{in: b, out: a}
}

type half struct {
	mu       sync.Mutex
	wake     *sync.Cond
	data     []byte
	closed   bool // no more data: the writer or the reader has closed
	rd, wd   time.Time
	rt, wt   *time.Timer
	readGone bool
}

func newHalf() *half {
	h := &half{}
	h.wake = sync.NewCond(&h.mu)
	return h
}

func expired(t time.Time) bool { return !t.IsZero() && !time.Now().Before(t) }

func (h *half) read(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		switch {
		case h.readGone:
			return 0, net.ErrClosed
		case expired(h.rd):
			return 0, os.ErrDeadlineExceeded
		case len(h.data) > 0:
			n := copy(p, h.data)
			h.data = h.data[n:]
			h.wake.Broadcast()
			return n, nil
		case h.closed:
			return 0, io.EOF
		case len(p) == 0:
			return 0, nil
		}
		h.wake.Wait()
	}
}

func (h *half) write(p []byte) (n int, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for len(p) > 0 {
		switch room := pipeBuffer - len(h.data); {
		case h.closed || h.readGone:
			return n, io.ErrClosedPipe
		case expired(h.wd):
			return n, os.ErrDeadlineExceeded
		case room > 0:
			k := min(room, len(p))
			h.data = append(h.data, p[:k]...)
			p, n = p[k:], n+k
			h.wake.Broadcast()
			continue
		}
		h.wake.Wait()
	}
	return n, nil
}

// arm sets a deadline and sees to it that waiters notice when it passes.
func (h *half) arm(at *time.Time, timer **time.Timer, t time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if *timer != nil {
		(*timer).Stop()
		*timer = nil
	}
	*at = t
	if !t.IsZero() {
		*timer = time.AfterFunc(time.Until(t), func() {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.wake.Broadcast()
		})
	}
	h.wake.Broadcast()
}

type pipeConn struct{ in, out *half }

func (c *pipeConn) Read(p []byte) (int, error)  { return c.in.read(p) }
func (c *pipeConn) Write(p []byte) (int, error) { return c.out.write(p) }

func (c *pipeConn) Close() error {
	c.in.mu.Lock()
	c.in.readGone = true
	c.in.wake.Broadcast()
	c.in.mu.Unlock()
	c.out.mu.Lock()
	c.out.closed = true
	c.out.wake.Broadcast()
	c.out.mu.Unlock()
	return nil
}

func (c *pipeConn) LocalAddr() net.Addr  { return addr(0) }
func (c *pipeConn) RemoteAddr() net.Addr { return addr(0) }

func (c *pipeConn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

func (c *pipeConn) SetReadDeadline(t time.Time) error {
	c.in.arm(&c.in.rd, &c.in.rt, t)
	return nil
}

func (c *pipeConn) SetWriteDeadline(t time.Time) error {
	c.out.arm(&c.out.wd, &c.out.wt, t)
	return nil
}
