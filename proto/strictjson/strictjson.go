// Package strictjson reads JSON objects in the one way in which they can be meant: each member once, under exactly its
// name. encoding/json alone takes the last of several members and ignores case, so that two readers of one signed
// document could see two documents. Values that nobody asks for are skipped without recursion.
package strictjson

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/errdefs"
)

// Member is one member of an object.
type Member struct {
	Name  string
	Value json.RawMessage
}

// Members returns the members of one JSON object in their order. Everything else than one object with members of
// different names, at most limit of them, is InvalidArgument. The caller bounds the size of raw.
func Members(raw []byte, limit int) ([]Member, error) {
	if !json.Valid(raw) {
		return nil, fmt.Errorf("not JSON: %w", errdefs.ErrInvalidArgument)
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	if first, err := dec.Token(); err != nil || first != json.Delim('{') {
		return nil, fmt.Errorf("not a JSON object: %w", errdefs.ErrInvalidArgument)
	}
	var list []Member
	seen := map[string]bool{}
	for dec.More() {
		token, err := dec.Token()
		name, ok := token.(string)
		if err != nil || !ok {
			return nil, fmt.Errorf("not a JSON object: %w", errdefs.ErrInvalidArgument)
		}
		m := Member{Name: name}
		if err := dec.Decode(&m.Value); err != nil {
			return nil, fmt.Errorf("not JSON: %w", errdefs.ErrInvalidArgument)
		}
		switch {
		case seen[name]:
			return nil, fmt.Errorf("member %.64q is there twice: %w", name, errdefs.ErrInvalidArgument)
		case len(list) >= limit:
			return nil, fmt.Errorf("more than %d members: %w", limit, errdefs.ErrInvalidArgument)
		}
		seen[name] = true
		list = append(list, m)
	}
	if _, err := dec.Token(); err != nil { // the closing brace
		return nil, fmt.Errorf("not JSON: %w", errdefs.ErrInvalidArgument)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("data after the JSON object: %w", errdefs.ErrInvalidArgument)
	}
	return list, nil
}

// maxMembers bounds objects whose members have fixed names.
const maxMembers = 64

// Object reads an object that may have no members but those of fields, whose values are what json.Unmarshal takes.
// Members that are missing leave their values as they are. Errors are InvalidArgument and never quote a value.
func Object(raw []byte, fields map[string]any) error { return object(raw, fields, false) }

// Open is Object for objects that may have further members.
func Open(raw []byte, fields map[string]any) error { return object(raw, fields, true) }

func object(raw []byte, fields map[string]any, open bool) error {
	members, err := Members(raw, maxMembers)
	if err != nil {
		return err
	}
	for _, m := range members {
		into, known := fields[m.Name]
		switch {
		case known:
			if err := json.Unmarshal(m.Value, into); err != nil {
				return fmt.Errorf("member %q has a value of the wrong kind: %w", m.Name, errdefs.ErrInvalidArgument)
			}
		case !open:
			return fmt.Errorf("unknown member %.64q: %w", m.Name, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}
