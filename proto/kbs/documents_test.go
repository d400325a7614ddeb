package kbs

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func TestResourceURI(t *testing.T) {
	for text, want := range map[string]ResourceURI{
		"kbs:///default/key/1":                {Repository: "default", Type: "key", Tag: "1"},
		"kbs://broker:8080/my-repo/key/a.b_c": {Address: "broker:8080", Repository: "my-repo", Type: "key", Tag: "a.b_c"},
	} {
		got, err := ParseResourceURI(text)
		if err != nil || got != want {
			t.Errorf("%s: got %+v, %v", text, got, err)
		}
		if got.String() != text {
			t.Errorf("%s prints as %s", text, got)
		}
	}
	for name, text := range map[string]string{
		"empty":        "",
		"scheme":       "http:///a/b/c",
		"no scheme":    "/a/b/c",
		"plugin":       "kbs+pkcs11:///a/b/c",
		"two segments": "kbs:///a/b",
		"four":         "kbs:///a/b/c/d",
		"empty part":   "kbs:///a//c",
		"dots":         "kbs:///a/../c",
		"hidden":       "kbs:///a/.b/c",
		"escape":       "kbs:///a/%2e%2e/c",
		"query":        "kbs:///a/b/c?x=1",
		"fragment":     "kbs:///a/b/c#x",
		"newline":      "kbs:///a/b/c\n",
		"nul":          "kbs:///a/b/c\x00",
		"unicode":      "kbs:///a/b/ç",
		"user":         "kbs://u:p@h/a/b/c",
		"long segment": "kbs:///a/b/" + strings.Repeat("c", 129),
		"long":         "kbs://" + strings.Repeat("c", 2000) + "/a/b/c",
	} {
		if got, err := ParseResourceURI(text); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%s: got %+v, %v", name, got, err)
		}
	}
}

func FuzzResourceURI(f *testing.F) {
	f.Add("kbs:///default/key/1")
	f.Add("kbs://host:1/a/b/c")
	f.Fuzz(func(t *testing.T, text string) {
		uri, err := ParseResourceURI(text)
		if err != nil {
			return
		}
		if uri.String() != text || uri.Validate() != nil || strings.Contains(uri.Path(), "..") && strings.Contains(uri.Path(), "/.") {
			t.Errorf("%q parsed to %+v", text, uri)
		}
	})
}

func TestDecode(t *testing.T) {
	var c Challenge
	if err := Decode([]byte(`{"nonce":"n","extra-params":"","later":1}`), 100, &c); err != nil || c.Nonce != "n" {
		t.Errorf("unknown member: %+v, %v", c, err)
	}
	for name, tc := range map[string]struct {
		raw    string
		strict bool
	}{
		"oversize":   {raw: `{"nonce":"` + strings.Repeat("x", 100) + `"}`},
		"duplicate":  {raw: `{"nonce":"a","nonce":"b"}`},
		"wrong kind": {raw: `{"nonce":7}`},
		"trailing":   {raw: `{"nonce":"a"}x`},
		"html":       {raw: `<html>`},
		"empty":      {raw: ` `},
		"two":        {raw: `{"nonce":"a"} {"nonce":"a"}`},
		"two, typed": {raw: `{"nonce":"a"} {"nonce":"a"}`, strict: true},
		"rest":       {raw: `{"nonce":"a"}x`, strict: true},
		"unknown":    {raw: `{"nonce":"a","other":1}`, strict: true},
	} {
		t.Run(name, func(t *testing.T) {
			decode := Decode
			if tc.strict {
				decode = DecodeStrict
			}
			if err := decode([]byte(tc.raw), 100, &Challenge{}); !errors.Is(err, errdefs.ErrInvalidArgument) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// A value of the wrong kind may be a secret in the wrong place.
func TestDecodeDoesNotQuote(t *testing.T) {
	err := Decode([]byte(`{"nonce":918273645}`), 100, &Challenge{})
	if err == nil || strings.Contains(err.Error(), "918273645") || !strings.Contains(err.Error(), "nonce") {
		t.Errorf("got %v", err)
	}
}

func TestAttestationShape(t *testing.T) {
	raw, err := json.Marshal(Attestation{
		RuntimeData: RuntimeData{Nonce: "n", TEEPublicKey: json.RawMessage(`{"kty":"EC"}`)},
		Evidence:    CompositeEvidence{Primary: json.RawMessage(`{"svn":"1"}`)},
	})
	const want = `{"runtime-data":{"nonce":"n","tee-pubkey":{"kty":"EC"}},"tee-evidence":{"primary_evidence":{"svn":"1"},"additional_evidence":""}}`
	if err != nil || string(raw) != want {
		t.Errorf("got %s, %v", raw, err)
	}
	var back Attestation
	if err := Decode([]byte(`{"init-data":null,"runtime-data":{"nonce":"n","tee-pubkey":{}},"tee-evidence":{"primary_evidence":{},"additional_evidence":""}}`), 1000, &back); err != nil || back.InitData != nil {
		t.Errorf("null init-data: %+v, %v", back, err)
	}
}

func TestProblem(t *testing.T) {
	p := NewProblem(KindPolicyDeny, "no")
	if got := ParseProblem(p.Encode()); got != p || got.Kind() != KindPolicyDeny {
		t.Errorf("got %+v", got)
	}
	if got := ParseProblem([]byte(`<html>`)); got != (Problem{}) || got.Kind() != "" {
		t.Errorf("garbage gave %+v", got)
	}
	dirty := NewProblem("X", "a\nb\x1b[31m"+strings.Repeat("é", 2000))
	if got := ParseProblem(dirty.Encode()); strings.ContainsAny(got.Detail, "\n\x1b") || len(got.Detail) > maxDetail+3 {
		t.Errorf("detail not cleaned: %q", got.Detail)
	}
}

func FuzzProblem(f *testing.F) {
	f.Add([]byte(`{"type":"x","detail":"y"}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		for _, s := range []string{ParseProblem(raw).Type, ParseProblem(raw).Detail} {
			for _, r := range s {
				if r < 0x20 || r > 0x7e {
					t.Errorf("unprintable %q from %q", s, raw)
				}
			}
		}
	})
}

func TestTEE(t *testing.T) {
	if err := TEESample.Validate(); err != nil {
		t.Error(err)
	}
	if err := TEE("Sample").Validate(); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("got %v", err)
	}
}
