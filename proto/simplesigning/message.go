package simplesigning

import (
	"bytes"
	"compress/flate"
	"compress/zlib"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/containerd/errdefs"
)

// message is a signed text of which nothing is known yet.
type message struct {
	text []byte
	// signature is the signature's packet, written anew.
	signature []byte
}

// parse takes a message apart. There is one form that it may have: one signature around one text.
func parse(raw []byte) (*message, error) {
	if len(raw) > MaxMessage {
		return nil, fmt.Errorf("it has more than %d bytes: %w", MaxMessage, errdefs.ErrInvalidArgument)
	}
	if bytes.HasPrefix(raw, []byte("-----BEGIN ")) {
		return nil, fmt.Errorf("it is text (armoured): make it with gpg --sign without --armor and --clearsign: %w", errdefs.ErrInvalidArgument)
	}
	packets, err := split(raw)
	if err != nil {
		return nil, err
	}
	if len(packets) == 1 && packets[0].tag == tagCompressed {
		if raw, err = inflate(packets[0].body); err != nil {
			return nil, err
		}
		if packets, err = split(raw); err != nil {
			return nil, err
		}
	}
	if err := checkForm(packets); err != nil {
		return nil, err
	}
	text, err := literal(packets[1].body)
	if err != nil {
		return nil, err
	}
	signature, err := rewrite(packets[2].body)
	if err != nil {
		return nil, err
	}
	return &message{text: text, signature: signature}, nil
}

// checkForm says what is wrong with a message in words that its maker understands.
func checkForm(packets []packet) error {
	count := map[byte]int{}
	for _, p := range packets {
		count[p.tag]++
	}
	why := "is no signed OpenPGP message"
	switch {
	case len(packets) == 3 && packets[0].tag == tagOnePass && packets[1].tag == tagLiteral && packets[2].tag == tagSignature:
		return nil
	case count[tagLiteral] > 1:
		why = "has more than one text"
	case count[tagLiteral] == 1 && count[tagSignature] == 0:
		why = "is not signed"
	case count[tagLiteral] == 0 && count[tagSignature] > 0:
		why = "is a detached signature; make it with gpg --sign"
	case count[tagSignature] > 1:
		why = "has several signatures; store them as one message for each key"
	case count[tagCompressed] > 0:
		why = "is compressed more than once, or in part"
	}
	return fmt.Errorf("it %s: %w", why, errdefs.ErrInvalidArgument)
}

// inflate undoes the compression that gpg does by itself (RFC 9580, section 5.6).
func inflate(body []byte) ([]byte, error) {
	if len(body) == 0 {
		return nil, errCut
	}
	from := bytes.NewReader(body[1:])
	var r io.Reader
	switch body[0] {
	case 1:
		r = flate.NewReader(from)
	case 2:
		var err error
		if r, err = zlib.NewReader(from); err != nil {
			return nil, errCut
		}
	default:
		return nil, fmt.Errorf("it is compressed by algorithm %d; make it with gpg --compress-algo none, zip or zlib: %w", body[0], errdefs.ErrNotImplemented)
	}
	raw, err := io.ReadAll(io.LimitReader(r, MaxMessage+1))
	switch {
	case err != nil:
		return nil, errCut
	case len(raw) > MaxMessage:
		return nil, fmt.Errorf("it has more than %d bytes when decompressed: %w", MaxMessage, errdefs.ErrInvalidArgument)
	case from.Len() > 0:
		return nil, fmt.Errorf("it has %d bytes behind its end: %w", from.Len(), errdefs.ErrInvalidArgument)
	}
	return raw, nil
}

// literal returns the text of a literal data packet (RFC 9580, section 5.9). Its file name and date are not signed.
func literal(body []byte) ([]byte, error) {
	if len(body) < 2 || len(body) < 2+int(body[1])+4 {
		return nil, errCut
	}
	text := body[2+int(body[1])+4:]
	if len(text) > maxText {
		return nil, fmt.Errorf("its text has %d bytes, the limit is %d: %w", len(text), maxText, errdefs.ErrInvalidArgument)
	}
	return text, nil
}

// rewrite writes a signature's packet as it may stand alone. In versions 4 and 6 a signature in a message covers the same
// bytes as a detached one; in version 5 it does not.
func rewrite(body []byte) ([]byte, error) {
	switch {
	case len(body) < 2:
		return nil, errCut
	case body[0] != 4 && body[0] != 6:
		return nil, fmt.Errorf("its signature has version %d, want 4 or 6; use a newer gpg: %w", body[0], errdefs.ErrNotImplemented)
	case body[1] != 0:
		return nil, fmt.Errorf("its signature is of type %#x, want one of binary data (gpg --sign without --textmode): %w", body[1], errdefs.ErrInvalidArgument)
	}
	out := append([]byte{0xc0 | tagSignature, 255}, binary.BigEndian.AppendUint32(nil, uint32(len(body)))...)
	return append(out, body...), nil
}
