// Package mux is what is said on the serial port between host and guest where the machine has no vsock: a yamux
// session, and at the start of each of its streams the port that the host wants to reach.
//
// The host is the yamux client and opens the streams; the guest is the server. A stream starts with a header of eight
// bytes from the host, Magic and the port in big-endian order; the guest answers one byte. Then the stream belongs to
// whoever listens on the port. The peer's bytes are untrusted on both sides; nothing here allocates by their word.
package mux

import (
	"encoding/binary"
	"fmt"
	"io"
	"time"

	"github.com/containerd/errdefs"
	"github.com/hashicorp/yamux"
)

// PortName is the name of the virtserialport that carries the session.
const PortName = "coffer.mux.0"

// Ports that a guest listens on; the numbers are those of Kata's agent on vsock, and the next one for what only our own
// guests have.
const (
	AgentPort uint32 = 1024
	LogPort   uint32 = 1025
	// ForwardPort takes the streams of package forward.
	ForwardPort uint32 = 1026
)

// Magic starts every stream; its last byte is the version.
const Magic = "CFM1"

const (
	headerSize = len(Magic) + 4

	replyAccepted   = 0
	replyNoListener = 1
)

// ErrNoListener is the guest's answer for a port that nothing listens on (yet). It is an errdefs.ErrUnavailable, so
// that a dialer may try again.
var ErrNoListener = fmt.Errorf("guest has no listener on the port: %w", errdefs.ErrUnavailable)

// WriteHeader asks for a port; host side.
func WriteHeader(w io.Writer, port uint32) error {
	header := binary.BigEndian.AppendUint32([]byte(Magic), port)
	if _, err := w.Write(header); err != nil {
		return fmt.Errorf("write stream header for port %d: %w", port, err)
	}
	return nil
}

// ReadHeader returns the port that the host asks for; guest side. Bytes that are no header fail with
// errdefs.ErrInvalidArgument. The caller bounds the time.
func ReadHeader(r io.Reader) (uint32, error) {
	var header [headerSize]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return 0, fmt.Errorf("read stream header: %w", err)
	}
	if string(header[:len(Magic)]) != Magic {
		return 0, fmt.Errorf("stream does not start with %s: %w", Magic, errdefs.ErrInvalidArgument)
	}
	return binary.BigEndian.Uint32(header[len(Magic):]), nil
}

// WriteReply tells the host whether somebody takes the stream; guest side.
func WriteReply(w io.Writer, accepted bool) error {
	reply := []byte{replyNoListener}
	if accepted {
		reply[0] = replyAccepted
	}
	if _, err := w.Write(reply); err != nil {
		return fmt.Errorf("write stream reply: %w", err)
	}
	return nil
}

// ReadReply returns nil once the guest has accepted the stream, ErrNoListener when nothing listens there, and
// errdefs.ErrInvalidArgument for an answer that is neither; host side.
func ReadReply(r io.Reader) error {
	var reply [1]byte
	if _, err := io.ReadFull(r, reply[:]); err != nil {
		return fmt.Errorf("read stream reply: %w", err)
	}
	switch reply[0] {
	case replyAccepted:
		return nil
	case replyNoListener:
		return ErrNoListener
	default:
		return fmt.Errorf("guest answered %d to a stream header; versions of shim and guest image differ: %w",
			reply[0], errdefs.ErrInvalidArgument)
	}
}

// Config is the yamux configuration of both ends.
func Config() *yamux.Config {
	config := yamux.DefaultConfig()
	// The session lives and dies with the VM, which the monitor reports; a guest that is paused, or slow under
	// emulation, must not lose its connection to a timer.
	config.EnableKeepAlive = false
	config.StreamOpenTimeout = 0
	config.ConnectionWriteTimeout = 5 * time.Minute
	// One stream may carry a container's whole output: the default window of 256 KiB makes each read wait for a round
	// trip through the emulated port.
	config.MaxStreamWindowSize = 1 << 20
	// yamux reports every orderly end as an error; callers see real ones from their reads and writes.
	config.LogOutput = io.Discard
	return config
}
