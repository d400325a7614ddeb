package kbs

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

// The vectors are those of RFC 8785, sections 3.2.2, 3.2.3 and appendix B.
func TestCanonicalVectors(t *testing.T) {
	for name, tc := range map[string]struct{ in, want string }{
		"section 3.2.2": {
			in: `{
				"numbers": [333333333.33333329, 1E30, 4.50, 2e-3, 0.000000000000000000000000001],
				"string": "\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/",
				"literals": [null, true, false]
			}`,
			want: `{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],"string":"€$\u000f\nA'B\"\\\\\"/"}`,
		},
		"section 3.2.3": {
			in:   `{"\u20ac":"Euro Sign","\r":"Carriage Return","\ufb33":"Hebrew","1":"One","\ud83d\ude00":"Emoji","\u0080":"Control","\u00f6":"Latin"}`,
			want: `{"\r":"Carriage Return","1":"One","` + "\u0080" + `":"Control","ö":"Latin","€":"Euro Sign","😀":"Emoji","` + "\ufb33" + `":"Hebrew"}`,
		},
		"controls":          {in: `"\u0000\u0008\u0009\u000b\u000c\u001f\u007f<>&` + "\u2028" + `"`, want: `"\u0000\b\t\u000b\f\u001f` + "\u007f<>&\u2028" + `"`},
		"empty containers":  {in: ` { "b" : [ ] , "a" : { } } `, want: `{"a":{},"b":[]}`},
		"already canonical": {in: `{"a":1}`, want: `{"a":1}`},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Canonical([]byte(tc.in))
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != tc.want {
				t.Errorf("got  %s\nwant %s", got, tc.want)
			}
		})
	}
}

func TestCanonicalNumbers(t *testing.T) {
	for bits, want := range map[uint64]string{
		0x0000000000000000: "0",
		0x8000000000000000: "0",
		0x0000000000000001: "5e-324",
		0x8000000000000001: "-5e-324",
		0x7fefffffffffffff: "1.7976931348623157e+308",
		0x4340000000000000: "9007199254740992",
		0xc340000000000000: "-9007199254740992",
		0x4430000000000000: "295147905179352830000",
		0x44b52d02c7e14af5: "9.999999999999997e+22",
		0x44b52d02c7e14af6: "1e+23",
		0x44b52d02c7e14af7: "1.0000000000000001e+23",
		0x444b1ae4d6e2ef4e: "999999999999999700000",
		0x444b1ae4d6e2ef4f: "999999999999999900000",
		0x444b1ae4d6e2ef50: "1e+21",
		0x3eb0c6f7a0b5ed8c: "9.999999999999997e-7",
		0x3eb0c6f7a0b5ed8d: "0.000001",
		0x41b3de4355555553: "333333333.3333332",
		0x41b3de4355555557: "333333333.33333343",
		0xbecbf647612f3696: "-0.0000033333333333333333",
		0x43143ff3c1cb0959: "1424953923781206.2",
	} {
		if got := string(appendNumber(nil, math.Float64frombits(bits))); got != want {
			t.Errorf("%016x: got %s, want %s", bits, got, want)
		}
	}
}

func TestCanonicalRefuses(t *testing.T) {
	for name, in := range map[string]string{
		"empty":                  ``,
		"two documents":          `{} {}`,
		"trailing comma":         `[1,]`,
		"duplicate member":       `{"a":1,"b":2,"a":3}`,
		"duplicate by escape":    `{"a":1,"\u0061":2}`,
		"not UTF-8":              "\"\xff\"",
		"lone high surrogate":    `"\ud800"`,
		"lone low surrogate":     `"\udc00"`,
		"high then other escape": `"\ud800\n"`,
		"two high surrogates":    `"\ud800\ud800"`,
		"number too large":       `1e400`,
		"too deep":               strings.Repeat("[", 80) + strings.Repeat("]", 80),
	} {
		t.Run(name, func(t *testing.T) {
			if out, err := Canonical([]byte(in)); !errors.Is(err, errdefs.ErrInvalidArgument) {
				t.Errorf("got %s, %v", out, err)
			}
		})
	}
}

const reportDataVector = "412a2cd46689a873a3606a62cc5dadd837d33a7dfe3706531ba537d4c21eb3dfb6a4639a2302472555aa3430cee0bc4e"

// The expected digest was computed with another implementation (Python's json and hashlib).
func TestReportData(t *testing.T) {
	key := json.RawMessage(`{"y":"eQ","kty":"EC","x":"eA","crv":"P-256","alg":"ECDH-ES+A256KW"}`)
	got, err := ReportData(SHA384, "bm9uY2U=", key, "")
	if err != nil {
		t.Fatal(err)
	}
	if hex.EncodeToString(got) != reportDataVector {
		t.Errorf("got %x, want %s", got, reportDataVector)
	}
	for name, other := range map[string]func() ([]byte, error){
		"nonce":    func() ([]byte, error) { return ReportData(SHA384, "bm9uY2V=", key, "") },
		"key":      func() ([]byte, error) { return ReportData(SHA384, "bm9uY2U=", json.RawMessage(`{"kty":"EC"}`), "") },
		"evidence": func() ([]byte, error) { return ReportData(SHA384, "bm9uY2U=", key, "{}") },
		"hash":     func() ([]byte, error) { return ReportData(SHA256, "bm9uY2U=", key, "") },
	} {
		changed, err := other()
		if err != nil || bytes.Equal(changed, got) {
			t.Errorf("report data does not depend on the %s (%v)", name, err)
		}
	}
	if _, err := ReportData("md5", "n", key, ""); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("unknown hash: %v", err)
	}
	if _, err := ReportData(SHA384, "n", json.RawMessage(`{"a":1,"a":2}`), ""); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("ambiguous key: %v", err)
	}
}

func TestSelectedHash(t *testing.T) {
	for in, want := range map[string]Hash{
		``: SHA384, `""`: SHA384, `null`: SHA384, `{}`: SHA384,
		`{"selected-hash-algorithm":"sha512"}`: SHA512,
		`{"selected-hash-algorithm":"md5"}`:    "",
		`{"selected-hash-algorithm":5}`:        "",
		`[]`:                                   "",
	} {
		got, err := SelectedHash(json.RawMessage(in))
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%s: got %q, %v", in, got, err)
		}
	}
}

func FuzzCanonical(f *testing.F) {
	f.Add([]byte(`{"a":[1,2.5e7,"\ud83d\ude00\u0007"],"b":null}`))
	f.Add([]byte(`"\ud800\ud800"`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		once, err := Canonical(raw)
		if err != nil {
			return
		}
		twice, err := Canonical(once)
		if err != nil || !bytes.Equal(once, twice) {
			t.Errorf("not stable: %q then %q, %v", once, twice, err)
		}
	})
}
