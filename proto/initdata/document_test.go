package initdata

import (
	"bytes"
	"crypto/sha512"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

const sample = `version = "0.1.0"
algorithm = "sha384"

[data]
"aa.toml" = '''
[token_configs.coco_kbs]
url = "http://10.0.0.1:8080"
'''
"cdh.toml" = '''
[kbc]
name = "cc_kbc"
url = "http://10.0.0.1:8080"
'''
"policy.rego" = "package agent_policy\n"
`

func TestParse(t *testing.T) {
	doc, err := Parse([]byte(sample))
	if err != nil {
		t.Fatal(err)
	}
	if doc.Version != Version || doc.Algorithm != SHA384 || len(doc.Data) != 3 || doc.Data[KeyPolicy] != "package agent_policy\n" {
		t.Errorf("got %+v", doc)
	}
	again, err := doc.Encode()
	if err != nil {
		t.Fatal(err)
	}
	back, err := Parse(again)
	if err != nil || back.Data[KeyCDH] != doc.Data[KeyCDH] {
		t.Errorf("round trip: %+v, %v", back, err)
	}
	if twice, err := back.Encode(); err != nil || !bytes.Equal(twice, again) {
		t.Errorf("encoding is not stable: %v", err)
	}
}

func TestEncodeKeepsTexts(t *testing.T) {
	texts := map[string]string{
		"plain": "a\n\tb\n", "empty": "", "quote": "it's", "quote-end": "x'", "quotes": "a'''b", "cr": "a\r\nb", "control": "\x00\x7f", "newlines": "\n\n", "backslash": `\n\`, "accent": "é€😀",
	}
	raw, err := (&Document{Version: Version, Algorithm: SHA256, Data: texts}).Encode()
	if err != nil {
		t.Fatal(err)
	}
	doc, err := Parse(raw)
	if err != nil {
		t.Fatalf("%v in:\n%s", err, raw)
	}
	for key, text := range texts {
		if doc.Data[key] != text {
			t.Errorf("%s: %q became %q", key, text, doc.Data[key])
		}
	}
	if !bytes.Contains(raw, []byte("\"plain\" = '''\na\n\tb\n'''\n")) {
		t.Errorf("not readable:\n%s", raw)
	}
}

func TestParseRefuses(t *testing.T) {
	for name, raw := range map[string]string{
		"empty":       "",
		"not TOML":    "{}",
		"version":     strings.Replace(sample, "0.1.0", "0.2.0", 1),
		"algorithm":   strings.Replace(sample, "sha384", "md5", 1),
		"unknown key": "extra = 1\n" + sample,
		"twice":       sample + "\"aa.toml\" = \"x\"\n",
		"not string":  sample + "\"x\" = 1\n",
		"path":        sample + "\"../x\" = \"1\"\n",
		"too long":    sample + "# " + strings.Repeat("x", MaxSize),
		"not UTF-8":   sample + "\"x\" = \"\xff\"\n",
	} {
		t.Run(name, func(t *testing.T) {
			if doc, err := Parse([]byte(raw)); !errors.Is(err, errdefs.ErrInvalidArgument) {
				t.Errorf("got %+v, %v", doc, err)
			}
		})
	}
}

func TestDigest(t *testing.T) {
	algorithm, sum, err := Digest([]byte(sample))
	want := sha512.Sum384([]byte(sample))
	if err != nil || algorithm != SHA384 || !bytes.Equal(sum, want[:]) {
		t.Errorf("got %s:%x, %v", algorithm, sum, err)
	}
	if algorithm, sum, err = Digest([]byte(strings.Replace(sample, "sha384", "sha-256", 1))); err != nil || algorithm != SHA256 || len(sum) != 32 {
		t.Errorf("long spelling: %s:%x, %v", algorithm, sum, err)
	}
	if got := Fit(want[:], SNPHostData); !bytes.Equal(got, want[:32]) {
		t.Errorf("SNP field %x", got)
	}
	if got := Fit([]byte{1}, TDXMRConfigID); len(got) != 48 || got[0] != 1 || got[1] != 0 {
		t.Errorf("TDX field %x", got)
	}
}

func TestAnnotation(t *testing.T) {
	value, err := EncodeAnnotation([]byte(sample))
	if err != nil {
		t.Fatal(err)
	}
	if again, _ := EncodeAnnotation([]byte(sample)); again != value {
		t.Error("annotation is not reproducible")
	}
	if raw, err := DecodeAnnotation(value); err != nil || string(raw) != sample {
		t.Errorf("got %q, %v", raw, err)
	}
	packed, err := base64.StdEncoding.DecodeString(value)
	if err != nil {
		t.Fatal(err)
	}
	bomb, err := pack([]byte(sample + "# " + strings.Repeat("x", MaxSize-len(sample)-10)))
	if err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string]string{
		"not base64": "!!",
		"not gzip":   base64.StdEncoding.EncodeToString([]byte(sample)),
		"cut":        base64.StdEncoding.EncodeToString(packed[:len(packed)-3]),
		"two":        base64.StdEncoding.EncodeToString(append(bytes.Clone(packed), packed...)),
		"flipped":    base64.StdEncoding.EncodeToString(append(bytes.Clone(packed[:len(packed)-5]), 1, 2, 3, 4, 5)),
		"oversize":   strings.Repeat("A", 2*MaxSize),
	} {
		if raw, err := DecodeAnnotation(bad); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%s: got %d bytes, %v", name, len(raw), err)
		}
	}
	if raw, err := unpack(bomb); err != nil || len(raw) < MaxSize-20 {
		t.Errorf("document near the limit: %d bytes, %v", len(raw), err)
	}
}

func TestDisk(t *testing.T) {
	disk, err := EncodeDisk([]byte(sample))
	if err != nil {
		t.Fatal(err)
	}
	if len(disk)%512 != 0 || string(disk[:8]) != "initdata" {
		t.Errorf("disk of %d bytes starts with %q", len(disk), disk[:8])
	}
	if raw, err := DecodeDisk(bytes.NewReader(disk)); err != nil || string(raw) != sample {
		t.Errorf("got %q, %v", raw, err)
	}
	huge := bytes.Clone(disk)
	binary.LittleEndian.PutUint64(huge[8:], 1<<60)
	short := bytes.Clone(disk)
	binary.LittleEndian.PutUint64(short[8:], 100000)
	for name, tc := range map[string]struct {
		disk []byte
		want error
	}{
		"empty":      {nil, errdefs.ErrNotFound},
		"other disk": {make([]byte, 4096), errdefs.ErrNotFound},
		"huge":       {huge, errdefs.ErrInvalidArgument},
		"short":      {short, errdefs.ErrInvalidArgument},
		"cut":        {disk[:100], errdefs.ErrInvalidArgument},
	} {
		if raw, err := DecodeDisk(bytes.NewReader(tc.disk)); !errors.Is(err, tc.want) {
			t.Errorf("%s: got %d bytes, %v", name, len(raw), err)
		}
	}
}

func TestUnwrap(t *testing.T) {
	value, err := EncodeAnnotation([]byte(sample))
	if err != nil {
		t.Fatal(err)
	}
	disk, err := EncodeDisk([]byte(sample))
	if err != nil {
		t.Fatal(err)
	}
	for name, form := range map[string]string{"text": sample, "annotation": value + "\n", "disk": string(disk)} {
		if raw, err := Unwrap([]byte(form)); err != nil || string(raw) != sample {
			t.Errorf("%s: got %q, %v", name, raw, err)
		}
	}
	if _, err := Unwrap([]byte("?")); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("noise: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(sample))
	f.Fuzz(func(t *testing.T, raw []byte) {
		doc, err := Parse(raw)
		if err != nil {
			return
		}
		again, err := doc.Encode()
		if err != nil {
			return // a document near the size limit may grow beyond it
		}
		back, err := Parse(again)
		if err != nil {
			t.Fatalf("own encoding refused: %v", err)
		}
		for key, text := range doc.Data {
			if back.Data[key] != text {
				t.Errorf("entry %q changed from %q to %q", key, text, back.Data[key])
			}
		}
	})
}

func FuzzDecodeDisk(f *testing.F) {
	disk, err := EncodeDisk([]byte(sample))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(disk)
	f.Fuzz(func(t *testing.T, disk []byte) {
		if raw, err := DecodeDisk(bytes.NewReader(disk)); err == nil && len(raw) > MaxSize {
			t.Errorf("%d bytes came out", len(raw))
		}
	})
}

func FuzzDecodeAnnotation(f *testing.F) {
	value, err := EncodeAnnotation([]byte(sample))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(value)
	f.Fuzz(func(t *testing.T, value string) {
		if raw, err := DecodeAnnotation(value); err == nil && len(raw) > MaxSize {
			t.Errorf("%d bytes came out", len(raw))
		}
	})
}
