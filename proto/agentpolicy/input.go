package agentpolicy

import (
	"encoding/json"
	"fmt"
	"strconv"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	agentpb "github.com/coffer-project/coffer/proto/agent"
)

// Limits of what a policy is shown of one request.
const (
	maxDepth  = 32
	maxValues = 200_000 // fields and elements, together
	maxText   = 4 << 20 // bytes of all strings
)

// factsKey is the one key of an input that Kata does not know.
const factsKey = "coffer"

// RuleName returns the name of the rule that decides about a request: its type's.
func RuleName(request proto.Message) string {
	return string(request.ProtoReflect().Descriptor().Name())
}

// Input returns a request as a policy sees it: an object with all fields of the message under their names in the protocol, a field type
// as type_, messages that are not there as null, and below coffer the facts. It is the form of Kata's agent, with two differences:
// bytes are not shown at all, except the target of a symbolic link; and there is coffer. InvalidArgument: the request is too large to be
// judged.
func Input(request proto.Message, facts *Facts) (map[string]any, error) {
	var out map[string]any
	if r, ok := request.(*agentpb.CopyFileRequest); ok {
		copied, err := copyFile(r)
		if err != nil {
			return nil, err
		}
		out = copied
	} else {
		w := writer{}
		out = w.message(request.ProtoReflect(), 0)
		if w.fault != nil {
			return nil, fmt.Errorf("%s: %w", RuleName(request), w.fault)
		}
	}
	if facts != nil {
		shown, err := plain(facts)
		if err != nil {
			return nil, err
		}
		out[factsKey] = shown
	}
	return out, nil
}

// plain turns a document into maps and lists.
func plain(document any) (any, error) {
	raw, err := json.Marshal(document)
	if err != nil {
		return nil, fmt.Errorf("encode input of policy: %w", err)
	}
	var out any
	if err := json.Unmarshal(raw, &out); err != nil {
		return nil, fmt.Errorf("encode input of policy: %w", err)
	}
	return out, nil
}

// The kinds of a copied file.
var fileTypes = map[uint32]string{0o100000: "Regular", 0o040000: "Directory", 0o120000: "Symlink"}

const fileTypeMask = 0o170000

// copyFile is the reduced form of a CopyFileRequest.
func copyFile(r *agentpb.CopyFileRequest) (map[string]any, error) {
	kind, known := fileTypes[r.GetFileMode()&fileTypeMask]
	if !known {
		kind = "Unknown"
	}
	var target any
	if kind == "Symlink" {
		if len(r.GetData()) > maxText {
			return nil, fmt.Errorf("target of a symbolic link of %d bytes: %w", len(r.GetData()), errdefs.ErrInvalidArgument)
		}
		text, err := utf8Text(r.GetData())
		if err != nil {
			return nil, err
		}
		target = text
	}
	return map[string]any{
		"path": r.GetPath(), "file_type": kind, "symlink_target": target,
		"file_size": number(r.GetFileSize()), "offset": number(r.GetOffset()),
		"file_mode": number(int64(r.GetFileMode())), "dir_mode": number(int64(r.GetDirMode())),
		"uid": number(int64(r.GetUid())), "gid": number(int64(r.GetGid())),
	}, nil
}

func number(n int64) json.Number { return json.Number(strconv.FormatInt(n, 10)) }

// writer turns messages into maps, and counts.
type writer struct {
	values, text int
	fault        error
}

// count notes one more value; false ends the walk.
func (w *writer) count(text, depth int) bool {
	w.values++
	w.text += text
	if w.fault == nil && (w.values > maxValues || w.text > maxText || depth > maxDepth) {
		w.fault = fmt.Errorf("request is too large or too deep for its policy: %w", errdefs.ErrInvalidArgument)
	}
	return w.fault == nil
}

func (w *writer) message(m protoreflect.Message, depth int) map[string]any {
	fields := m.Descriptor().Fields()
	out := make(map[string]any, fields.Len()+1)
	for i := range fields.Len() {
		field := fields.Get(i)
		if field.Kind() == protoreflect.BytesKind || !w.count(0, depth) {
			continue
		}
		out[fieldName(field)] = w.field(m, field, depth)
	}
	return out
}

// fieldName is a field's name where a word of the Rust language gets an underscore: Kata's names come from there.
func fieldName(field protoreflect.FieldDescriptor) string {
	if field.Name() == "type" {
		return "type_"
	}
	return string(field.Name())
}

func (w *writer) field(m protoreflect.Message, field protoreflect.FieldDescriptor, depth int) any {
	switch {
	case field.IsMap():
		out := map[string]any{}
		m.Get(field).Map().Range(func(key protoreflect.MapKey, value protoreflect.Value) bool {
			out[key.String()] = w.value(field.MapValue(), value, depth)
			return w.count(len(key.String()), depth)
		})
		return out
	case field.IsList():
		list := m.Get(field).List()
		out := make([]any, 0, min(list.Len(), maxValues))
		for i := range list.Len() {
			if !w.count(0, depth) {
				break
			}
			out = append(out, w.value(field, list.Get(i), depth))
		}
		return out
	case field.Message() != nil && !m.Has(field):
		return nil
	default:
		return w.value(field, m.Get(field), depth)
	}
}

func (w *writer) value(field protoreflect.FieldDescriptor, v protoreflect.Value, depth int) any {
	switch field.Kind() {
	case protoreflect.MessageKind, protoreflect.GroupKind:
		if !w.count(0, depth+1) {
			return nil
		}
		return w.message(v.Message(), depth+1)
	case protoreflect.StringKind:
		w.count(len(v.String()), depth)
		return v.String()
	case protoreflect.BoolKind:
		return v.Bool()
	case protoreflect.EnumKind:
		return number(int64(v.Enum()))
	case protoreflect.Uint32Kind, protoreflect.Uint64Kind, protoreflect.Fixed32Kind, protoreflect.Fixed64Kind:
		return json.Number(strconv.FormatUint(v.Uint(), 10))
	case protoreflect.FloatKind, protoreflect.DoubleKind:
		return v.Float()
	default:
		return number(v.Int())
	}
}
