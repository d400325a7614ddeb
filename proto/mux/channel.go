package mux

import (
	"encoding/binary"
	"io"
)

// The layout of yamux's frame header, from its specification (spec.md, "Framing"): version, type, flags, stream, length.
const (
	frameSize   = 12
	frameType   = 1
	frameLength = 8
	typeData    = 0
)

// Channel gives each frame of a session to the port in one piece. yamux writes a frame's header and what follows in two
// calls, and every write to an emulated port interrupts the machine on its other side.
type Channel struct {
	io.ReadWriteCloser
	frame []byte // a header that waits for its data
}

// NewChannel wraps the port under a session, which must be its only writer.
func NewChannel(port io.ReadWriteCloser) *Channel { return &Channel{ReadWriteCloser: port} }

// Write implements io.Writer. A header that announces data is kept until that is there; yamux writes one after the
// other, from a single goroutine.
func (c *Channel) Write(p []byte) (int, error) {
	if len(c.frame) == 0 && announcesData(p) {
		c.frame = append(c.frame, p...)
		return len(p), nil
	}
	if len(c.frame) == 0 {
		return c.ReadWriteCloser.Write(p)
	}
	kept := len(c.frame)
	c.frame = append(c.frame, p...)
	n, err := c.ReadWriteCloser.Write(c.frame)
	c.frame = c.frame[:0]
	return max(n-kept, 0), err
}

func announcesData(p []byte) bool {
	return len(p) == frameSize && p[frameType] == typeData && binary.BigEndian.Uint32(p[frameLength:]) > 0
}
