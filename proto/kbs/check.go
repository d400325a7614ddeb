package kbs

import (
	"encoding/json"
	"fmt"
	"strconv"
	"unicode/utf8"

	"github.com/containerd/errdefs"
)

// checkJSON refuses what Canonical refuses. It reads the document once and builds nothing: evidence has thousands of numbers, and brokers
// check it for each guest.
func checkJSON(raw []byte) error {
	if !utf8.Valid(raw) {
		return fmt.Errorf("document is not UTF-8: %w", errdefs.ErrInvalidArgument)
	}
	if !json.Valid(raw) {
		return fmt.Errorf("document is not JSON: %w", errdefs.ErrInvalidArgument)
	}
	if err := checkSurrogates(raw); err != nil {
		return err
	}
	var c checker
	for i := 0; i < len(raw); {
		next, err := c.step(raw, i)
		if err != nil {
			return err
		}
		i = next
	}
	return nil
}

// checker walks over valid JSON, so that no byte can come where it does not belong.
type checker struct {
	open []container
}

// container is an object or array that has begun.
type container struct {
	isObject bool
	names    map[string]struct{}
	atName   bool // the next string is a member's name
}

// step handles what begins at raw[i] and returns where the next begins.
func (c *checker) step(raw []byte, i int) (int, error) {
	switch b := raw[i]; {
	case b == '{' || b == '[':
		if err := c.value(); err != nil {
			return 0, err
		}
		c.open = append(c.open, container{isObject: b == '{', atName: b == '{'})
	case b == '}' || b == ']':
		c.open = c.open[:len(c.open)-1]
	case b == ',':
		top := &c.open[len(c.open)-1]
		top.atName = top.isObject
	case b == '"':
		end := stringEnd(raw, i)
		return end, c.text(raw[i:end])
	case b == '-' || b >= '0' && b <= '9':
		end := i + 1
		for end < len(raw) && isNumberByte(raw[end]) {
			end++
		}
		if err := c.value(); err != nil {
			return 0, err
		}
		return end, checkNumber(raw[i:end])
	case b == 't' || b == 'n':
		return i + len("true"), c.value()
	case b == 'f':
		return i + len("false"), c.value()
	}
	return i + 1, nil
}

// value notes that a value begins.
func (c *checker) value() error {
	if len(c.open) > maxDepth {
		return fmt.Errorf("JSON nested deeper than %d: %w", maxDepth, errdefs.ErrInvalidArgument)
	}
	return nil
}

// text handles a string with its quotes.
func (c *checker) text(quoted []byte) error {
	if len(c.open) == 0 || !c.open[len(c.open)-1].atName {
		return c.value()
	}
	top := &c.open[len(c.open)-1]
	top.atName = false
	var name string
	if err := json.Unmarshal(quoted, &name); err != nil {
		return fmt.Errorf("document is not JSON: %w", errdefs.ErrInvalidArgument)
	}
	if _, ok := top.names[name]; ok {
		return fmt.Errorf("duplicate JSON member %q: %w", sanitize(name, 64), errdefs.ErrInvalidArgument)
	}
	if top.names == nil {
		top.names = map[string]struct{}{}
	}
	top.names[name] = struct{}{}
	return nil
}

// stringEnd returns where the string that begins at raw[i] has ended.
func stringEnd(raw []byte, i int) int {
	for i++; raw[i] != '"'; i++ {
		if raw[i] == '\\' {
			i++
		}
	}
	return i + 1
}

func isNumberByte(b byte) bool {
	return b >= '0' && b <= '9' || b == '.' || b == 'e' || b == 'E' || b == '+' || b == '-'
}

// checkNumber refuses what no double can hold. Short numbers without exponent always fit.
func checkNumber(text []byte) error {
	if len(text) < 100 {
		short := true
		for _, b := range text {
			short = short && b != 'e' && b != 'E'
		}
		if short {
			return nil
		}
	}
	if _, err := strconv.ParseFloat(string(text), 64); err != nil {
		return fmt.Errorf("number outside the range of a double: %w", errdefs.ErrInvalidArgument)
	}
	return nil
}
