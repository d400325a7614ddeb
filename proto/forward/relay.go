package forward

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
)

// maxPayload bounds a frame, in bytes. Larger frames gain nothing: a stream's window is 1 MiB.
const maxPayload = 32 << 10

// ErrReset is the end of a stream whose other end gave up: the connection there was reset, or its process died.
var ErrReset = fmt.Errorf("forwarded connection was reset by the other end: %w", errdefs.ErrUnavailable)

// errIdle ends a connection of which one half was closed and the other has fallen silent.
var errIdle = fmt.Errorf("forwarded connection was half closed and idle: %w", errdefs.ErrUnavailable)

// Relay moves data between conn and stream until both directions have ended, and closes both. An end of one direction is
// passed on and leaves the other open, but a connection that is half closed and then moves nothing for halfIdle is given
// up: the process that closed its half may have died, which TCP does not tell.
//
// When ctx ends, a read or write fails, or the other end gives up, conn is reset and stream closed, so that both
// processes learn of it at once.
func Relay(ctx context.Context, conn *net.TCPConn, stream net.Conn, halfIdle time.Duration) error {
	r := &relay{conn: conn, stream: stream, halfIdle: halfIdle}
	defer context.AfterFunc(ctx, r.abort)()
	ends := make(chan error, 2)
	go func() { ends <- r.send() }()
	go func() { ends <- r.receive() }()
	err := <-ends
	if err != nil {
		r.abort()
	} else {
		timer := time.AfterFunc(halfIdle, func() {
			r.expired.Store(true)
			r.abort()
		})
		defer timer.Stop()
		r.idle.Store(timer)
	}
	if second := <-ends; err == nil {
		err = second
	}
	switch {
	case ctx.Err() != nil:
		err = ctx.Err()
	case r.expired.Load():
		err = errIdle
	}
	if err != nil {
		r.abort()
		return err
	}
	return errors.Join(conn.Close(), stream.Close())
}

type relay struct {
	conn     *net.TCPConn
	stream   net.Conn
	halfIdle time.Duration
	idle     atomic.Pointer[time.Timer] // once one direction has ended
	expired  atomic.Bool
}

// abort ends both directions now. A stream's pending calls need a deadline to end: yamux's Close leaves reads waiting.
func (r *relay) abort() {
	Reset(r.conn)
	_ = r.stream.SetDeadline(time.Unix(1, 0))
	_ = r.stream.Close()
}

// Reset closes conn so that its peer sees a reset and not an orderly end.
func Reset(conn *net.TCPConn) {
	_ = conn.SetLinger(0)
	_ = conn.Close()
}

func (r *relay) moved() {
	if timer := r.idle.Load(); timer != nil {
		timer.Reset(r.halfIdle)
	}
}

// send frames what conn says.
func (r *relay) send() error {
	buffer := make([]byte, headerSize+maxPayload)
	for {
		n, err := r.conn.Read(buffer[headerSize:])
		if err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("read from connection: %w", err)
		}
		// A connection's Read returns data or an end, never both: no data is the end, and the empty frame says so.
		binary.BigEndian.PutUint32(buffer, uint32(n))
		if _, err := r.stream.Write(buffer[:headerSize+n]); err != nil {
			return fmt.Errorf("send to the other end: %w", err)
		}
		if n == 0 {
			return nil
		}
		r.moved()
	}
}

// receive writes to conn what frames hold.
func (r *relay) receive() error {
	in := bufio.NewReaderSize(r.stream, headerSize+maxPayload)
	buffer := make([]byte, maxPayload)
	for {
		n, err := readFrame(in, buffer)
		if err != nil {
			return err
		}
		if n == 0 {
			if err := r.conn.CloseWrite(); err != nil {
				return fmt.Errorf("end the connection's direction: %w", err)
			}
			return nil
		}
		if _, err := r.conn.Write(buffer[:n]); err != nil {
			return fmt.Errorf("write to connection: %w", err)
		}
		r.moved()
	}
}

// readFrame reads a frame's data into buffer and returns its size, 0 at the end of the direction.
func readFrame(in io.Reader, buffer []byte) (int, error) {
	var header [headerSize]byte
	if _, err := io.ReadFull(in, header[:]); err != nil {
		return 0, ended(err)
	}
	size := binary.BigEndian.Uint32(header[:])
	if size > uint32(len(buffer)) {
		return 0, fmt.Errorf("frame of %d bytes, limit %d: %w", size, len(buffer), errdefs.ErrInvalidArgument)
	}
	n, err := io.ReadFull(in, buffer[:size])
	return n, ended(err)
}

// ended names the end of a stream that has not said that it ends.
func ended(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return ErrReset
	}
	return err
}
