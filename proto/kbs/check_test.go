package kbs

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
)

// Decode must agree with the parser behind Canonical: what one of them refuses must not get past the other.
func FuzzDecode(f *testing.F) {
	deep := func(n int, inner string) string { return strings.Repeat("[", n) + inner + strings.Repeat("]", n) }
	for _, text := range []string{
		`{}`, `{"a":1,"a":2}`, `{"a":1,"\u0061":2}`, `{"a":{"a":1},"b":["a","a"]}`, `"\ud800"`, `1e999`, `-0.5e-3`, `[1,2,]`, ` {"a" : [ true , null, false ] } `,
		`{"a":"\"{,:}"}`, "1 2", "\xff", strings.Repeat("9", 400), `[{"x":1},{"x":1}]`, `[1,22,333,1e999]`, `[1,2222,{"a":1,"a":2}]`, `{"a":[1,2],"a":3}`, `}`, `,`, `"`, `"\`, `"\ud8`, `[1,`, deep(64, ""), deep(65, ""), deep(66, ""), deep(65, "1"), deep(64, `{"a":"b"}`), deep(64, "null"),
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		_, parseErr := parseJSON(raw)
		for name, decode := range map[string]func([]byte, int, any) error{"loose": Decode, "strict": DecodeStrict} {
			var value json.RawMessage
			if err := decode(raw, len(raw), &value); (parseErr == nil) != (err == nil) {
				t.Errorf("%q: %s decoded %v, parsed %v", raw, name, err, parseErr)
			}
		}
	})
}

// Octets must read what encoding/json would read as numbers from 0 to 255.
func FuzzOctets(f *testing.F) {
	for _, text := range []string{`[]`, `[0,255]`, ` [ 1 , 2 ] `, `[256]`, `[1000]`, `[-1]`, `[1.0]`, `[1e1]`, `[null]`, `["a"]`, `{}`, `null`, `[[1]]`} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		var numbers []uint8 // as numbers, not as base64
		var list []uint16
		err := json.Unmarshal(raw, &list)
		want := err == nil && list != nil && !bytes.Contains(raw, []byte("null"))
		for _, n := range list {
			want = want && n <= 0xff
			numbers = append(numbers, uint8(n))
		}
		var got Octets
		err = json.Unmarshal(raw, &got)
		if (err == nil) != want && string(bytes.TrimSpace(raw)) != "null" || want && !bytes.Equal(got, numbers) {
			t.Errorf("%q: got %v, %v, want %v", raw, got, err, numbers)
		}
	})
}
