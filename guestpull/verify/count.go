package verify

import (
	"bytes"
	"errors"
)

var errNoList = errors.New("a list was expected")

// count is how many elements a JSON list has. To know that before the list is read keeps a document of some MiB from
// becoming some hundred MiB of memory.
type count int

// UnmarshalJSON gets a value whose syntax was checked.
func (c *count) UnmarshalJSON(raw []byte) error {
	if bytes.Equal(raw, []byte("null")) {
		return nil
	}
	if raw[0] != '[' {
		return errNoList
	}
	depth, commas, text, empty := 0, 0, false, true
	for i := 0; i < len(raw); i++ {
		b := raw[i]
		switch {
		case text && b == '\\':
			i++
			continue
		case b == '"':
			text = !text
		case text:
		case b == '[', b == '{':
			if depth++; depth == 1 {
				continue
			}
		case b == ']', b == '}':
			depth--
			continue
		case b == ',' && depth == 1:
			commas++
			continue
		}
		if b != ' ' && b != '\t' && b != '\n' && b != '\r' {
			empty = false
		}
	}
	*c = 0
	if !empty {
		*c = count(commas + 1)
	}
	return nil
}
