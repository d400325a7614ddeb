package worker

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/coffer-project/coffer/guestpull/unpack"
)

const goodID = `"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"`

// TestDecode has answers that no honest worker gives.
func TestDecode(t *testing.T) {
	cases := map[string]struct {
		text string
		ok   bool
	}{
		"good":              {text: `{"size":5,"diff_id":` + goodID + `,"implied":["YQ=="]}`, ok: true},
		"no diff id":        {text: `{"size":5}`},
		"negative size":     {text: `{"size":-5,"diff_id":` + goodID + `}`},
		"huge size":         {text: `{"size":5000000000000,"diff_id":` + goodID + `}`},
		"other digest":      {text: `{"size":5,"diff_id":"sha512:` + strings.Repeat("0", 128) + `"}`},
		"unknown field":     {text: `{"size":5,"diff_id":` + goodID + `,"x":1}`},
		"two documents":     {text: `{"size":5,"diff_id":` + goodID + `}{}`},
		"implied leads out": {text: `{"diff_id":` + goodID + `,"implied":["Li4vYQ=="]}`}, // ../a
		"implied is rooted": {text: `{"diff_id":` + goodID + `,"implied":["L2E="]}`},     // /a
		"implied with NUL":  {text: `{"diff_id":` + goodID + `,"implied":["YQBi"]}`},     // a\0b
		"link leads out":    {text: `{"diff_id":` + goodID + `,"links":[{"name":"Li4vYQ==","target":"YQ=="}]}`},
		"link with type":    {text: `{"diff_id":` + goodID + `,"links":[{"name":"YQ==","target":"Yg==","mode":33188}]}`},
		"bad attribute":     {text: `{"diff_id":` + goodID + `,"links":[{"name":"YQ==","target":"Yg==","xattrs":{"a":"YQ=="}}]}`},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			_, _, err := decode([]byte(tc.text), digest.SHA256, unpack.DefaultLimits())
			if tc.ok != (err == nil) || (!tc.ok && !errors.Is(err, errdefs.ErrInternal)) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// FuzzMessages feeds whatever a worker could send to the parent's parsers.
func FuzzMessages(f *testing.F) {
	var good bytes.Buffer
	for kind, content := range map[byte]string{
		kindFree: "", kindQuestion: "", kindResult: `{"size":5,"diff_id":` + goodID + `,"links":[{"name":"YQ==","target":"Yg=="}]}`,
		kindFailure: `{"class":"invalid","message":"x"}`,
	} {
		if err := send(&good, kind, []byte(content)); err != nil {
			f.Fatal(err)
		}
	}
	f.Add(good.Bytes())
	f.Add([]byte{kindResult, 255, 255, 255, 255})
	f.Fuzz(func(t *testing.T, raw []byte) {
		for r := bytes.NewReader(raw); ; {
			kind, content, err := receive(r)
			if err != nil {
				return
			}
			if len(content) > maxContent(kind) {
				t.Fatalf("message %c has %d bytes", kind, len(content))
			}
			switch kind {
			case kindResult:
				if res, _, err := decode(content, digest.SHA256, unpack.DefaultLimits()); err == nil {
					if _, err := encode(res, false); err != nil {
						t.Fatal(err)
					}
				}
			case kindFailure:
				if err := decodeFailure(content); err == nil || len(err.Error()) > 4*maxFailure {
					t.Fatalf("got %v", err)
				}
			}
		}
	})
}
