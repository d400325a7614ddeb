package strictjson

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func TestObject(t *testing.T) {
	for name, tc := range map[string]struct {
		text         string
		closed, open error
	}{
		"right":              {`{"a":"x","b":[1]}`, nil, nil},
		"white space":        {" {\"a\" : \"x\"}\n", nil, nil},
		"nothing":            {`{}`, nil, nil},
		"null":               {`{"a":null}`, nil, nil},
		"further member":     {`{"a":"x","c":{"a":1,"a":2}}`, errdefs.ErrInvalidArgument, nil},
		"other case":         {`{"A":"x"}`, errdefs.ErrInvalidArgument, nil},
		"twice":              {`{"a":"x","a":"y"}`, errdefs.ErrInvalidArgument, errdefs.ErrInvalidArgument},
		"twice, escaped":     {`{"a":"x","\u0061":"y"}`, errdefs.ErrInvalidArgument, errdefs.ErrInvalidArgument},
		"other twice":        {`{"c":1,"c":1}`, errdefs.ErrInvalidArgument, errdefs.ErrInvalidArgument},
		"wrong kind":         {`{"a":1}`, errdefs.ErrInvalidArgument, errdefs.ErrInvalidArgument},
		"text":               {`"a"`, errdefs.ErrInvalidArgument, errdefs.ErrInvalidArgument},
		"empty":              {``, errdefs.ErrInvalidArgument, errdefs.ErrInvalidArgument},
		"cut":                {`{"a":"x"`, errdefs.ErrInvalidArgument, errdefs.ErrInvalidArgument},
		"something behind":   {`{"a":"x"}{}`, errdefs.ErrInvalidArgument, errdefs.ErrInvalidArgument},
		"many members":       {"{" + strings.TrimSuffix(manyMembers(65), ",") + "}", errdefs.ErrInvalidArgument, errdefs.ErrInvalidArgument},
		"deep where ignored": {`{"c":` + strings.Repeat("[", 5000) + strings.Repeat("]", 5000) + `}`, errdefs.ErrInvalidArgument, nil},
	} {
		t.Run(name, func(t *testing.T) {
			var a string
			var b json.RawMessage
			fields := map[string]any{"a": &a, "b": &b}
			if err := Object([]byte(tc.text), fields); !errors.Is(err, tc.closed) {
				t.Errorf("closed: %v", err)
			}
			if err := Open([]byte(tc.text), fields); !errors.Is(err, tc.open) {
				t.Errorf("open: %v", err)
			}
		})
	}
}

func manyMembers(n int) string {
	var out strings.Builder
	for i := range n {
		out.WriteString(`"` + strings.Repeat("c", i+1) + `":1,`)
	}
	return out.String()
}

// FuzzMembers: whatever is accepted means the same to encoding/json.
func FuzzMembers(f *testing.F) {
	f.Add(`{"a":"x","b":[1,{"c":null}]}`)
	f.Fuzz(func(t *testing.T, text string) {
		list, err := Members([]byte(text), 8)
		if err != nil {
			return
		}
		var want map[string]any
		if err := json.Unmarshal([]byte(text), &want); err != nil {
			t.Fatalf("accepted %q: %v", text, err)
		}
		got := map[string]any{}
		for _, m := range list {
			var value any
			if err := json.Unmarshal(m.Value, &value); err != nil {
				t.Fatal(err)
			}
			got[m.Name] = value
		}
		if len(list) != len(want) || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: got %v, want %v", text, got, want)
		}
	})
}
