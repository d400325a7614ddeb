package agentpolicy

import (
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"unicode/utf8"

	"github.com/containerd/errdefs"
)

// stateKey is the name of the state in a policy's data, and the start of every path of an operation.
const stateKey = "pstate"

// Limits on what a policy remembers.
const (
	maxOps       = 256
	maxStateKeys = 4096
	maxStateSize = 1 << 20 // bytes, encoded
)

// op is one operation of a JSON patch (RFC 6902) on the state. Only its first level can be changed, which is what policies do.
type op struct {
	Op    string `json:"op"`
	Path  string `json:"path"`
	From  string `json:"from"`
	Value any    `json:"value"`
}

// apply returns the state after the operations, all of them or none. InvalidArgument: they are not what a policy may do.
func apply(state map[string]any, ops []op) (map[string]any, error) {
	if len(ops) > maxOps {
		return nil, fmt.Errorf("%d operations on the state: at most %d are allowed: %w", len(ops), maxOps, errdefs.ErrInvalidArgument)
	}
	next := maps.Clone(state)
	for i, o := range ops {
		if err := applyOne(next, o); err != nil {
			return nil, fmt.Errorf("operation %d on the state: %w", i, err)
		}
	}
	raw, err := json.Marshal(next)
	if err != nil {
		return nil, fmt.Errorf("encode state of policy: %w", err)
	}
	if len(next) > maxStateKeys || len(raw) > maxStateSize {
		return nil, fmt.Errorf("state of %d entries and %d bytes is too large: %w", len(next), len(raw), errdefs.ErrInvalidArgument)
	}
	return next, nil
}

func applyOne(state map[string]any, o op) error {
	key, err := stateEntry(o.Path)
	if err != nil {
		return err
	}
	old, there := state[key]
	missing := fmt.Errorf("%s of %q, which is not there: %w", o.Op, key, errdefs.ErrInvalidArgument)
	switch o.Op {
	case "add":
		state[key] = o.Value
	case "replace":
		if !there {
			return missing
		}
		state[key] = o.Value
	case "remove":
		if !there {
			return missing
		}
		delete(state, key)
	case "test":
		if !there || !equal(old, o.Value) {
			return fmt.Errorf("test of %q does not hold: %w", key, errdefs.ErrInvalidArgument)
		}
	case "move", "copy":
		from, err := stateEntry(o.From)
		if err != nil {
			return err
		}
		value, there := state[from]
		if !there {
			return missing
		}
		if o.Op == "move" {
			delete(state, from)
		}
		state[key] = value
	default:
		return fmt.Errorf("operation %.32q is none of a JSON patch: %w", o.Op, errdefs.ErrInvalidArgument)
	}
	return nil
}

// stateEntry returns the entry that a path names, with the escapes of a JSON pointer (RFC 6901) undone.
func stateEntry(path string) (string, error) {
	rest, ok := strings.CutPrefix(path, "/"+stateKey+"/")
	if !ok || rest == "" || strings.Contains(rest, "/") {
		return "", fmt.Errorf("path %.80q is not /%s/ and a name: %w", path, stateKey, errdefs.ErrInvalidArgument)
	}
	return strings.ReplaceAll(strings.ReplaceAll(rest, "~1", "/"), "~0", "~"), nil
}

func equal(a, b any) bool {
	x, err := json.Marshal(a)
	if err != nil {
		return false
	}
	y, err := json.Marshal(b)
	return err == nil && string(x) == string(y)
}

// utf8Text refuses what a policy could not read as text.
func utf8Text(data []byte) (string, error) {
	if !utf8.Valid(data) {
		return "", fmt.Errorf("target of a symbolic link is not UTF-8: %w", errdefs.ErrInvalidArgument)
	}
	return string(data), nil
}
