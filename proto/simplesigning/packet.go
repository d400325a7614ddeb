package simplesigning

import (
	"encoding/binary"
	"fmt"

	"github.com/containerd/errdefs"
)

// Types of packets (RFC 9580, section 5).
const (
	tagSignature  = 2
	tagOnePass    = 4
	tagCompressed = 8
	tagLiteral    = 11
)

// packet is one packet with its parts put together.
type packet struct {
	tag  byte
	body []byte
}

var errCut = fmt.Errorf("it is cut or no OpenPGP message: %w", errdefs.ErrInvalidArgument)

// split takes packets apart (RFC 9580, section 4.2) and leaves nothing over.
func split(raw []byte) ([]packet, error) {
	var list []packet
	for len(raw) > 0 {
		if len(list) == maxPackets {
			return nil, fmt.Errorf("it has more than %d packets: %w", maxPackets, errdefs.ErrInvalidArgument)
		}
		first := raw[0]
		if first&0x80 == 0 {
			return nil, errCut
		}
		var p packet
		var err error
		if first&0x40 != 0 {
			p.tag = first & 0x3f
			p.body, raw, err = body(raw[1:], p.tag)
		} else {
			p.tag = first >> 2 & 0x0f
			p.body, raw, err = oldBody(raw[1:], p.tag, first&3)
		}
		if err != nil {
			return nil, err
		}
		list = append(list, p)
	}
	return list, nil
}

// streamed tells the packets of which the length need not be known from the start.
func streamed(tag byte) bool { return tag == tagCompressed || tag == tagLiteral }

// body reads the length of a packet, and its body, which may come in parts.
func body(raw []byte, tag byte) (whole, rest []byte, err error) {
	for {
		n, header, partial := length(raw)
		if header == 0 || n > len(raw)-header || (partial && !streamed(tag)) {
			return nil, nil, errCut
		}
		whole = append(whole, raw[header:header+n]...)
		if raw = raw[header+n:]; !partial {
			return whole, raw, nil
		}
	}
}

// length reads one length; header is how many octets it has, 0 when there are too few.
func length(raw []byte) (n, header int, partial bool) {
	switch {
	case len(raw) == 0:
		return 0, 0, false
	case raw[0] < 192:
		return int(raw[0]), 1, false
	case raw[0] < 224 && len(raw) >= 2:
		return (int(raw[0])-192)<<8 + int(raw[1]) + 192, 2, false
	case raw[0] == 255 && len(raw) >= 5:
		return int(binary.BigEndian.Uint32(raw[1:])), 5, false
	case raw[0] >= 224 && raw[0] < 255:
		return 1 << (raw[0] & 0x1f), 1, true
	}
	return 0, 0, false
}

// oldBody is body for the older form of headers, which gpg writes.
func oldBody(raw []byte, tag, kind byte) (whole, rest []byte, err error) {
	header := 1 << kind
	if kind == 3 {
		if !streamed(tag) {
			return nil, nil, errCut
		}
		return raw, nil, nil // it goes on to the end
	}
	if len(raw) < header {
		return nil, nil, errCut
	}
	n := 0
	for _, b := range raw[:header] {
		n = n<<8 | int(b)
	}
	if raw = raw[header:]; n > len(raw) {
		return nil, nil, errCut
	}
	return raw[:n], raw[n:], nil
}
