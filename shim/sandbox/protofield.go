package sandbox

import (
	"fmt"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/encoding/protowire"
)

// field is the value of one field of an encoded message: a number or bytes, whichever was on the wire.
type field struct {
	number uint64
	bytes  []byte
}

func (f field) text() string { return string(f.bytes) }

// message walks the field's own fields.
func (f field) message(visit func(protowire.Number, field) error) error {
	return fields(f.bytes, visit)
}

// entry adds the field, which is one entry of a map of strings, to into.
func (f field) entry(into *map[string]string) error {
	var key, value string
	err := f.message(func(number protowire.Number, f field) error {
		switch number {
		case 1:
			key = f.text()
		case 2:
			value = f.text()
		}
		return nil
	})
	if err != nil {
		return err
	}
	if *into == nil {
		*into = map[string]string{}
	}
	(*into)[key] = value
	return nil
}

// fields walks the fields of an encoded message in order. It fails with errdefs.ErrInvalidArgument when raw is no
// message.
func fields(raw []byte, visit func(protowire.Number, field) error) error {
	for len(raw) > 0 {
		number, kind, n := protowire.ConsumeTag(raw)
		if n < 0 {
			return malformed(n)
		}
		raw = raw[n:]
		var value field
		switch kind {
		case protowire.VarintType:
			value.number, n = protowire.ConsumeVarint(raw)
		case protowire.BytesType:
			value.bytes, n = protowire.ConsumeBytes(raw)
		default:
			n = protowire.ConsumeFieldValue(number, kind, raw)
		}
		if n < 0 {
			return malformed(n)
		}
		raw = raw[n:]
		if err := visit(number, value); err != nil {
			return err
		}
	}
	return nil
}

func malformed(code int) error {
	return fmt.Errorf("%w: %w", protowire.ParseError(code), errdefs.ErrInvalidArgument)
}
