// Package eventlog reads the event log of a confidential guest (CCEL) and replays it: the log says what was loaded, and replaying it
// must give the runtime registers that the TEE signed. A log proves nothing by itself; it comes from the guest's memory and, on its way,
// from the host, so every bound is checked.
//
// The format is that of the TCG (PC Client Platform Firmware Profile, section 10) with confidential computing's numbering of registers
// (UEFI 2.10, section 38.4.1): index 1 is RTMR 0.
package eventlog

import (
	"bytes"
	"crypto/sha512"
	"encoding/binary"
	"fmt"

	"github.com/containerd/errdefs"
)

// MaxSize bounds a log in bytes, MaxEvents its events.
const (
	MaxSize   = 1 << 20
	MaxEvents = 4096
)

// Registers is the number of runtime registers.
const Registers = 4

// algorithmSHA384 is TPM_ALG_SHA384, the one algorithm of runtime registers.
const algorithmSHA384 = 0x000c

// noAction is EV_NO_ACTION: information for readers of the log, which is not measured.
const noAction = 3

// Event is one entry of the log.
type Event struct {
	// Register is the runtime register that the event was measured into, 0 to 3.
	Register int
	// Type is the event's type, by the numbers of the TCG.
	Type uint32
	// Digest is what was measured.
	Digest [sha512.Size384]byte
	// Data describes it; for some types Digest is its hash.
	Data []byte
}

// Log is a log that was read.
type Log struct {
	Events []Event
}

// Parse reads a log. The area that firmware keeps for it is larger than the log: zeros or bytes 0xff after the last event end it.
// Errors are InvalidArgument.
func Parse(raw []byte) (*Log, error) {
	if len(raw) > MaxSize {
		return nil, fmt.Errorf("event log of %d bytes is larger than the limit of %d: %w", len(raw), MaxSize, errdefs.ErrInvalidArgument)
	}
	r := &reader{rest: raw}
	if err := r.header(); err != nil {
		return nil, err
	}
	log := &Log{}
	for !r.atEnd() {
		if len(log.Events) == MaxEvents {
			return nil, fmt.Errorf("event log has more than %d events: %w", MaxEvents, errdefs.ErrInvalidArgument)
		}
		event, measured, err := r.event()
		if err != nil {
			return nil, fmt.Errorf("event %d: %w", len(log.Events), err)
		}
		if measured {
			log.Events = append(log.Events, event)
		}
	}
	return log, nil
}

// Replay returns the registers that measuring the events in order gives.
func (l *Log) Replay() [Registers][sha512.Size384]byte {
	var registers [Registers][sha512.Size384]byte
	for _, e := range l.Events {
		registers[e.Register] = Extend(registers[e.Register], e.Digest)
	}
	return registers
}

// Extend returns a register's value after a digest was measured into it.
func Extend(register, digest [sha512.Size384]byte) [sha512.Size384]byte {
	return sha512.Sum384(append(register[:], digest[:]...))
}

// reader takes numbers off the front. After a fault it stays at its end.
type reader struct {
	rest  []byte
	short bool
}

func (r *reader) take(n uint32) []byte {
	if uint64(n) > uint64(len(r.rest)) {
		r.rest, r.short = nil, true
		return make([]byte, min(n, 64))
	}
	taken := r.rest[:n:n]
	r.rest = r.rest[n:]
	return taken
}

func (r *reader) u16() uint16 { return binary.LittleEndian.Uint16(r.take(2)) }
func (r *reader) u32() uint32 { return binary.LittleEndian.Uint32(r.take(4)) }

func (r *reader) fault(reason string) error {
	if r.short {
		reason = "ends early"
	}
	return fmt.Errorf("event log %s: %w", reason, errdefs.ErrInvalidArgument)
}

// header reads the first event, of the old form, which names the algorithms (TCG_EfiSpecIdEvent).
func (r *reader) header() error {
	r.u32() // its register; firmware writes 0 or 1
	kind := r.u32()
	r.take(20) // the old form's digest
	inner := &reader{rest: r.take(r.u32())}
	signature := inner.take(16)
	inner.take(8) // platform class, version, size of integers
	algorithms := inner.u32()
	if r.short || inner.short || kind != noAction || !bytes.Equal(signature, []byte("Spec ID Event03\x00")) {
		return r.fault("does not begin with the names of its algorithms")
	}
	for range min(algorithms, 8) {
		if id, size := inner.u16(), inner.u16(); id == algorithmSHA384 && size == sha512.Size384 && !inner.short {
			if algorithms != 1 { // others are never used for runtime registers, and we know no sizes to skip them by
				break
			}
			return nil
		}
	}
	return r.fault("has another algorithm than SHA-384")
}

// atEnd looks for what fills the rest of the area.
func (r *reader) atEnd() bool {
	if len(r.rest) < 8 {
		return len(bytes.Trim(r.rest, "\x00\xff")) == 0
	}
	next := binary.LittleEndian.Uint64(r.rest)
	return next == 0 || next == 1<<64-1
}

// event reads one event (TCG_PCR_EVENT2). measured is false for those that no register knows of.
func (r *reader) event() (e Event, measured bool, err error) {
	index := r.u32()
	e.Type = r.u32()
	if digests := r.u32(); digests != 1 {
		return e, false, r.fault("has an event with another number of digests than one")
	}
	if algorithm := r.u16(); algorithm != algorithmSHA384 {
		return e, false, r.fault("has an event with a digest of another algorithm than SHA-384")
	}
	copy(e.Digest[:], r.take(sha512.Size384))
	e.Data = r.take(r.u32())
	if r.short {
		return e, false, r.fault("")
	}
	if e.Type == noAction {
		return e, false, nil
	}
	if index < 1 || index > Registers {
		return e, false, r.fault("has an event for a register that does not exist")
	}
	e.Register = int(index) - 1
	return e, true, nil
}
