package kbs

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/containerd/errdefs"
)

// maxDepth bounds the nesting of a document: recursion here must not follow a hostile peer.
const maxDepth = 64

// Canonical rewrites one JSON document in the form of RFC 8785: no white space, members sorted by UTF-16 code units, numbers as
// ECMAScript prints them, the shortest escapes. Documents that have no such form (duplicate members, broken Unicode, numbers outside
// a double) are InvalidArgument.
func Canonical(raw []byte) ([]byte, error) {
	value, err := parseJSON(raw)
	if err != nil {
		return nil, err
	}
	return appendValue(make([]byte, 0, len(raw)), value), nil
}

// object keeps its members sorted; a map would lose duplicates.
type object []member

type member struct {
	name  string
	order []uint16
	value any
}

func parseJSON(raw []byte) (any, error) {
	if !utf8.Valid(raw) {
		return nil, fmt.Errorf("document is not UTF-8: %w", errdefs.ErrInvalidArgument)
	}
	if !json.Valid(raw) {
		return nil, fmt.Errorf("document is not JSON: %w", errdefs.ErrInvalidArgument)
	}
	if err := checkSurrogates(raw); err != nil {
		return nil, err
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	value, err := parseValue(dec, 0)
	if err != nil {
		return nil, err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("data after the JSON document: %w", errdefs.ErrInvalidArgument)
	}
	return value, nil
}

func parseValue(dec *json.Decoder, depth int) (any, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("JSON nested deeper than %d: %w", maxDepth, errdefs.ErrInvalidArgument)
	}
	token, err := dec.Token()
	if err != nil {
		return nil, fmt.Errorf("document is not JSON: %w", errdefs.ErrInvalidArgument)
	}
	switch token := token.(type) {
	case json.Delim:
		if token == '{' {
			return parseObject(dec, depth)
		}
		return parseArray(dec, depth)
	case json.Number:
		return parseNumber(token)
	default:
		return token, nil
	}
}

func parseObject(dec *json.Decoder, depth int) (any, error) {
	members := object{}
	for dec.More() {
		token, err := dec.Token()
		name, ok := token.(string)
		if err != nil || !ok {
			return nil, fmt.Errorf("document is not JSON: %w", errdefs.ErrInvalidArgument)
		}
		value, err := parseValue(dec, depth+1)
		if err != nil {
			return nil, err
		}
		members = append(members, member{name: name, order: utf16.Encode([]rune(name)), value: value})
	}
	if _, err := dec.Token(); err != nil {
		return nil, fmt.Errorf("document is not JSON: %w", errdefs.ErrInvalidArgument)
	}
	slices.SortFunc(members, func(a, b member) int { return slices.Compare(a.order, b.order) })
	for i := 1; i < len(members); i++ {
		if members[i].name == members[i-1].name {
			return nil, fmt.Errorf("duplicate JSON member %q: %w", sanitize(members[i].name, 64), errdefs.ErrInvalidArgument)
		}
	}
	return members, nil
}

func parseArray(dec *json.Decoder, depth int) (any, error) {
	items := []any{}
	for dec.More() {
		item, err := parseValue(dec, depth+1)
		if err != nil {
			return nil, err
		}
		items = append(items, item)
	}
	if _, err := dec.Token(); err != nil {
		return nil, fmt.Errorf("document is not JSON: %w", errdefs.ErrInvalidArgument)
	}
	return items, nil
}

func parseNumber(number json.Number) (any, error) {
	value, err := strconv.ParseFloat(number.String(), 64)
	if err != nil {
		return nil, fmt.Errorf("number outside the range of a double: %w", errdefs.ErrInvalidArgument)
	}
	return value, nil
}

// checkSurrogates refuses \ud800-style escapes without their partner, which encoding/json would silently replace.
// raw is JSON, where a backslash only occurs inside strings, so no string state is needed; or what has quotes around it.
func checkSurrogates(raw []byte) error {
	for i := 0; i < len(raw); i++ {
		if raw[i] != '\\' {
			continue
		}
		if raw[i+1] != 'u' {
			i++
			continue
		}
		unit := hexUnit(raw[i+2:])
		i += 5
		if !utf16.IsSurrogate(unit) {
			continue
		}
		if len(raw) < i+7 || raw[i+1] != '\\' || raw[i+2] != 'u' || utf16.DecodeRune(unit, hexUnit(raw[i+3:])) == utf8.RuneError {
			return fmt.Errorf("lone surrogate in a JSON string: %w", errdefs.ErrInvalidArgument)
		}
		i += 6
	}
	return nil
}

func hexUnit(digits []byte) rune {
	if len(digits) < 4 {
		return utf8.RuneError
	}
	value, err := strconv.ParseUint(string(digits[:4]), 16, 16)
	if err != nil {
		return utf8.RuneError
	}
	return rune(value)
}

func appendValue(out []byte, value any) []byte {
	switch value := value.(type) {
	case object:
		out = append(out, '{')
		for i, m := range value {
			if i > 0 {
				out = append(out, ',')
			}
			out = append(appendString(out, m.name), ':')
			out = appendValue(out, m.value)
		}
		return append(out, '}')
	case []any:
		out = append(out, '[')
		for i, item := range value {
			if i > 0 {
				out = append(out, ',')
			}
			out = appendValue(out, item)
		}
		return append(out, ']')
	case string:
		return appendString(out, value)
	case float64:
		return appendNumber(out, value)
	case bool:
		return strconv.AppendBool(out, value)
	default:
		return append(out, "null"...)
	}
}

func appendString(out []byte, s string) []byte {
	const hex = "0123456789abcdef"
	out = append(out, '"')
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			out = append(out, '\\', c)
		case c == '\b':
			out = append(out, '\\', 'b')
		case c == '\t':
			out = append(out, '\\', 't')
		case c == '\n':
			out = append(out, '\\', 'n')
		case c == '\f':
			out = append(out, '\\', 'f')
		case c == '\r':
			out = append(out, '\\', 'r')
		case c < 0x20:
			out = append(out, '\\', 'u', '0', '0', hex[c>>4], hex[c&0xf])
		default:
			out = append(out, c)
		}
	}
	return append(out, '"')
}

// appendNumber prints as ECMAScript's Number::toString does.
func appendNumber(out []byte, f float64) []byte {
	if f == 0 {
		return append(out, '0') // also for minus zero
	}
	if abs := math.Abs(f); abs >= 1e-6 && abs < 1e21 {
		return strconv.AppendFloat(out, f, 'f', -1, 64)
	}
	text := strconv.AppendFloat(nil, f, 'e', -1, 64)
	// Go prints at least two digits of exponent, ECMAScript as few as it can.
	if n := len(text); text[n-2] == '0' && (text[n-3] == '+' || text[n-3] == '-') {
		text = append(text[:n-2], text[n-1])
	}
	return append(out, text...)
}
