package kbs

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/containerd/errdefs"
)

// checkJSON refuses of what encoding/json accepts all that Canonical refuses; whether it is JSON at all is left to the decoder, which
// looks at each byte again anyway. It reads the document once and builds nothing: evidence has thousands of numbers, and brokers check it
// for each guest.
func checkJSON(raw []byte) error {
	if !utf8.Valid(raw) {
		return fmt.Errorf("document is not UTF-8: %w", errdefs.ErrInvalidArgument)
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

var errNotJSON = fmt.Errorf("document is not JSON: %w", errdefs.ErrInvalidArgument)

// checker walks over JSON. On anything else it may pass or fail, but ends.
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
		if len(c.open) == 0 {
			return 0, errNotJSON
		}
		c.open = c.open[:len(c.open)-1]
	case b == ',':
		if len(c.open) == 0 {
			return 0, errNotJSON
		}
		top := &c.open[len(c.open)-1]
		top.atName = top.isObject
	case b == '"':
		end, err := stringEnd(raw, i)
		if err != nil {
			return 0, err
		}
		return end, c.text(raw[i:end])
	case b == '-' || b >= '0' && b <= '9':
		return c.number(raw, i)
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

// number handles a number, and the ones that follow it where they are the bytes of an Octets.
func (c *checker) number(raw []byte, i int) (int, error) {
	if err := c.value(); err != nil {
		return 0, err
	}
	if len(c.open) > 0 && !c.open[len(c.open)-1].isObject {
		if next := skipOctets(raw, i); next > i {
			return next, nil
		}
	}
	end := i + 1
	for end < len(raw) && isNumberByte(raw[end]) {
		end++
	}
	return end, checkNumber(raw[i:end])
}

// skipOctets returns what follows the numbers of one to three digits, each with its comma, that begin at raw[i].
func skipOctets(raw []byte, i int) int {
	for {
		digits := 0
		for digits < 3 && i+digits < len(raw) && raw[i+digits] >= '0' && raw[i+digits] <= '9' {
			digits++
		}
		if digits == 0 || i+digits >= len(raw) || raw[i+digits] != ',' {
			return i
		}
		i += digits + 1
	}
}

// text handles a string with its quotes.
func (c *checker) text(quoted []byte) error {
	if err := checkSurrogates(quoted); err != nil {
		return err
	}
	if len(c.open) == 0 || !c.open[len(c.open)-1].atName {
		return c.value()
	}
	top := &c.open[len(c.open)-1]
	top.atName = false
	name := string(quoted[1 : len(quoted)-1])
	if strings.Contains(name, `\`) {
		if err := json.Unmarshal(quoted, &name); err != nil {
			return errNotJSON
		}
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
func stringEnd(raw []byte, i int) (int, error) {
	for i++; i < len(raw); i++ {
		switch raw[i] {
		case '"':
			return i + 1, nil
		case '\\':
			i++
		}
	}
	return 0, errNotJSON
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
