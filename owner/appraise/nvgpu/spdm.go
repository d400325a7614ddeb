package nvgpu

import (
	"encoding/binary"
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/proto/kbs"
)

// The exchange of SPDM 1.1 (DMTF DSP0274, sections 10.11.1 and 10.11.2) that devices hand out: the request for all measurements with a
// signature, and the response.
const (
	requestHead   = "\x11\xe0\x01\xff" // version, GET_MEASUREMENTS, with signature, all measurements
	responseHead  = "\x11\x60"         // version, MEASUREMENTS
	requestSize   = 4 + kbs.NVIDIANonce + 1
	signatureSize = 96  // ECDSA over P-384, r and s
	dmtfFormat    = 1   // of a measurement
	hashSize      = 48  // SHA-384
	maxBlocks     = 128 // real devices have 31 or 64
)

// report is an exchange whose bounds are checked and nothing else. Its slices alias the bytes that it was read from.
type report struct {
	nonce        []byte
	measurements map[uint8][]byte
	opaque       map[uint16][]byte
	signed       []byte // what signature covers
	signature    []byte
}

// parseReport reads an exchange. Where it ends follows from its lengths: drivers hand out buffers that are longer, and zeros from there on.
// Errors are InvalidArgument.
func parseReport(raw []byte) (*report, error) {
	r := &reader{rest: raw}
	if len(raw) > kbs.MaxNVIDIAReport {
		return nil, r.fault(fmt.Sprintf("is larger than %d bytes", kbs.MaxNVIDIAReport))
	}
	request := r.take(requestSize)
	response := r.take(4)
	if r.short {
		return nil, r.fault("")
	}
	if string(request[:4]) != requestHead || string(response[:2]) != responseHead {
		return nil, r.fault("is no exchange of SPDM 1.1 that asks for all measurements and a signature, and gets them")
	}
	out := &report{nonce: request[4 : 4+kbs.NVIDIANonce]}
	count := int(r.take(1)[0])
	size := r.take(3)
	record := &reader{rest: r.take(int(size[0]) | int(size[1])<<8 | int(size[2])<<16)}
	r.take(kbs.NVIDIANonce) // the device's own nonce
	opaque := &reader{rest: r.take(int(r.u16()))}
	out.signed = raw[:len(raw)-len(r.rest)]
	out.signature = r.take(signatureSize)
	if r.short {
		return nil, r.fault("")
	}
	for _, b := range r.rest {
		if b != 0 {
			return nil, r.fault("has data after its end")
		}
	}
	var err error
	if out.measurements, err = readMeasurements(record, count); err != nil {
		return nil, err
	}
	out.opaque, err = readOpaque(opaque)
	return out, err
}

func readMeasurements(r *reader, count int) (map[uint8][]byte, error) {
	if count == 0 || count > maxBlocks {
		return nil, r.fault(fmt.Sprintf("has %d measurements, not 1 to %d", count, maxBlocks))
	}
	found := make(map[uint8][]byte, count)
	for range count {
		head := r.take(2)
		block := &reader{rest: r.take(int(r.u16()))}
		block.take(1) // the type: the index tells as much
		value := block.take(int(block.u16()))
		if r.short || block.short {
			return nil, (&reader{short: true}).fault("")
		}
		if _, twice := found[head[0]]; twice || head[0] == 0 || head[1] != dmtfFormat || len(block.rest) > 0 || len(value) != hashSize {
			return nil, r.fault("has a measurement twice, or one that is no SHA-384 in the format of the DMTF")
		}
		found[head[0]] = value
	}
	if len(r.rest) > 0 {
		return nil, r.fault("has data after its measurements")
	}
	return found, nil
}

func readOpaque(r *reader) (map[uint16][]byte, error) {
	found := map[uint16][]byte{}
	for len(r.rest) > 0 {
		kind := r.u16()
		value := r.take(int(r.u16()))
		if r.short {
			return nil, r.fault("")
		}
		if _, twice := found[kind]; twice {
			return nil, r.fault("says something twice")
		}
		found[kind] = value
	}
	return found, nil
}

// reader takes bytes off the front. After a fault it stays at its end and gives zeros.
type reader struct {
	rest  []byte
	short bool
}

func (r *reader) take(n int) []byte {
	if n > len(r.rest) {
		r.rest, r.short = nil, true
		return make([]byte, min(n, requestSize))
	}
	taken := r.rest[:n:n]
	r.rest = r.rest[n:]
	return taken
}

func (r *reader) u16() uint16 { return binary.LittleEndian.Uint16(r.take(2)) }

func (r *reader) fault(reason string) error {
	if r.short {
		reason = "ends early"
	}
	return fmt.Errorf("report of an NVIDIA device %s: %w", reason, errdefs.ErrInvalidArgument)
}
