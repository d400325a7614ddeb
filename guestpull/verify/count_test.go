package verify

import (
	"encoding/json"
	"testing"
)

func TestCount(t *testing.T) {
	for text, want := range map[string]count{
		`[]`: 0, ` [ ] `: 0, `null`: 0, `[1]`: 1, `[{}]`: 1, `[[]]`: 1, `[[],{}]`: 2, `[{"a":[1,2,3],"b":"],,\"["},"x,\\",null]`: 3, "[1,\n2\t,3]": 3,
	} {
		var got count
		if err := json.Unmarshal([]byte(text), &got); err != nil || got != want {
			t.Errorf("%s: got %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{`"x"`, `{}`, `1`, `true`} {
		var got count
		if err := json.Unmarshal([]byte(text), &got); err == nil {
			t.Errorf("%s was taken for a list", text)
		}
	}
}

func FuzzCount(f *testing.F) {
	f.Add([]byte(`[{"a":[1,2,3],"b":"],,\"["},"x,\\",null]`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		var list []json.RawMessage
		if json.Unmarshal(raw, &list) != nil {
			return
		}
		var got count
		if err := json.Unmarshal(raw, &got); err != nil || int(got) != len(list) {
			t.Errorf("%q: got %d, %v; want %d", raw, got, err, len(list))
		}
	})
}
