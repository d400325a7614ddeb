package tdx

import (
	"encoding/binary"
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/proto/kbs"
)

// The parts of quotes (Intel TDX DCAP Quoting Library API, appendix 3).
const (
	headerSize  = 48
	body10Size  = 584
	body15Size  = 648
	keyECDSA256 = 2
	teeTDX      = 0x81

	body10 = 2 // the types of bodies in version 5
	body15 = 3

	certQEReport = 6 // the types of certification data
	certPCKChain = 5

	reportSize = 384 // of an SGX enclave
	sigSize    = 64
)

// intelQE is the vendor of the quoting enclave.
const intelQE = "\x93\x9a\x72\x33\xf7\x9c\x4c\xa9\x94\x0a\x0d\xb3\x95\x7f\x06\x07"

// quote is a quote whose bounds are checked and nothing else. Its slices alias the bytes that it was read from.
type quote struct {
	version  uint16
	bodyType uint16 // body10 or body15
	signed   []byte // what signature covers
	header   []byte
	body     body

	signature      []byte
	attestationKey []byte // X and Y
	qeReport       []byte
	qeSignature    []byte
	qeAuthData     []byte
	pckChain       []byte // PEM
}

// body is the part that describes the guest.
type body struct {
	teeTCBSVN, mrSeam, mrSignerSeam, seamAttributes, tdAttributes, xfam []byte
	mrTD, mrConfigID, mrOwner, mrOwnerConfig                            []byte
	rtmr                                                                [4][]byte
	reportData                                                          []byte
	teeTCBSVN2, mrServiceTD                                             []byte // TDX 1.5 in version 5; otherwise nil
}

// parseQuote reads a quote of version 4 or 5. Bytes after its end may be the rest of the buffer that a guest's kernel keeps for quotes,
// if they are zeros. Errors are InvalidArgument.
func parseQuote(raw []byte) (*quote, error) {
	if len(raw) > kbs.MaxQuote {
		return nil, fmt.Errorf("TDX quote of %d bytes is larger than the limit of %d: %w", len(raw), kbs.MaxQuote, errdefs.ErrInvalidArgument)
	}
	r := &reader{rest: raw}
	q := &quote{header: r.take(headerSize)}
	if r.short {
		return nil, r.fault("")
	}
	q.version = binary.LittleEndian.Uint16(q.header)
	keyType, tee := binary.LittleEndian.Uint16(q.header[2:]), binary.LittleEndian.Uint32(q.header[4:])
	if keyType != keyECDSA256 || tee != teeTDX || string(q.header[12:28]) != intelQE {
		return nil, r.fault("is not one that Intel's quoting enclave signed by ECDSA for a TDX guest")
	}
	size := body10Size
	switch q.version {
	case 4:
		q.bodyType = body10
	case 5:
		var claimed uint32
		q.bodyType, claimed = r.u16(), r.u32()
		switch {
		case q.bodyType == body10 && claimed == body10Size:
		case q.bodyType == body15 && claimed == body15Size:
			size = body15Size
		default:
			return nil, r.fault("has a body of an unknown type or size")
		}
	default:
		return nil, r.fault(fmt.Sprintf("is of version %d, not 4 or 5", q.version))
	}
	q.body = readBody(&reader{rest: r.take(size)}, size == body15Size)
	q.signed = raw[:len(raw)-len(r.rest)]
	signature := &reader{rest: r.take(int(r.u32()))}
	if r.short {
		return nil, r.fault("")
	}
	if err := q.readSignature(signature); err != nil {
		return nil, err
	}
	for _, b := range r.rest {
		if b != 0 {
			return nil, r.fault("has data after its end")
		}
	}
	return q, nil
}

func readBody(r *reader, tdx15 bool) body {
	var b body
	for _, field := range []struct {
		into *[]byte
		size int
	}{
		{&b.teeTCBSVN, 16}, {&b.mrSeam, 48}, {&b.mrSignerSeam, 48}, {&b.seamAttributes, 8}, {&b.tdAttributes, 8}, {&b.xfam, 8},
		{&b.mrTD, 48}, {&b.mrConfigID, 48}, {&b.mrOwner, 48}, {&b.mrOwnerConfig, 48},
		{&b.rtmr[0], 48}, {&b.rtmr[1], 48}, {&b.rtmr[2], 48}, {&b.rtmr[3], 48}, {&b.reportData, 64},
	} {
		*field.into = r.take(field.size)
	}
	if tdx15 {
		b.teeTCBSVN2, b.mrServiceTD = r.take(16), r.take(48)
	}
	return b
}

// readSignature reads what follows the body: the signature, its key, and what vouches for the key.
func (q *quote) readSignature(r *reader) error {
	q.signature, q.attestationKey = r.take(sigSize), r.take(sigSize)
	kind, size := r.u16(), r.u32()
	if !r.short && (kind != certQEReport || uint64(size) != uint64(len(r.rest))) {
		return r.fault("has certification data of an unknown type or size")
	}
	q.qeReport, q.qeSignature = r.take(reportSize), r.take(sigSize)
	q.qeAuthData = r.take(int(r.u16()))
	kind, size = r.u16(), r.u32()
	if !r.short && (kind != certPCKChain || uint64(size) != uint64(len(r.rest))) {
		return r.fault("carries no chain of certificates of its platform")
	}
	q.pckChain = r.take(int(size))
	if r.short {
		return r.fault("")
	}
	return nil
}

// reader takes bytes off the front. After a fault it stays at its end and gives zeros.
type reader struct {
	rest  []byte
	short bool
}

func (r *reader) take(n int) []byte {
	if n < 0 || n > len(r.rest) {
		r.rest, r.short = nil, true
		return make([]byte, min(max(n, 0), body15Size))
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
	return fmt.Errorf("TDX quote %s: %w", reason, errdefs.ErrInvalidArgument)
}
