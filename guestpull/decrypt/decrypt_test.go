package decrypt

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"

	"github.com/containerd/errdefs"
	"github.com/containers/ocicrypt"
	"github.com/containers/ocicrypt/config"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coffer-project/coffer/proto/kbs"
	"github.com/coffer-project/coffer/proto/keyprovider"
)

const keyID = "kbs:///default/image/test"

var testKEK = bytes.Repeat([]byte{7}, keyprovider.KEKSize)

// wrapper is a key provider for ocicrypt itself, like CoCo's, which makes ocicrypt the oracle of both directions.
type wrapper struct{ wrap keyprovider.WrapType }

func (w wrapper) WrapKeys(ec *config.EncryptConfig, opts []byte) ([]byte, error) {
	uri, err := kbs.ParseResourceURI(keyID)
	if err != nil {
		return nil, err
	}
	if wt := ec.Parameters["wrap"]; len(wt) > 0 {
		w.wrap = keyprovider.WrapType(wt[0])
	}
	p, err := keyprovider.Seal(testKEK, uri, w.wrap, opts)
	if err != nil {
		return nil, err
	}
	return p.Encode()
}

func (wrapper) UnwrapKey(_ *config.DecryptConfig, raw []byte) ([]byte, error) {
	p, err := keyprovider.ParsePacket(raw)
	if err != nil {
		return nil, err
	}
	return p.Open(testKEK)
}

func (wrapper) GetAnnotationID() string                     { return keyprovider.LayerAnnotation }
func (wrapper) NoPossibleKeys(map[string][][]byte) bool     { return false }
func (wrapper) GetPrivateKeys(map[string][][]byte) [][]byte { return [][]byte{{1}} }
func (wrapper) GetKeyIdsFromPacket(string) ([]uint64, error) { //nolint:revive // the name is ocicrypt's
	return nil, nil
}
func (wrapper) GetRecipients(string) ([]string, error) { return nil, nil }

func init() {
	ocicrypt.RegisterKeyWrapper("provider."+keyprovider.ProviderName, wrapper{keyprovider.WrapGCM})
}

// seal encrypts with ocicrypt.
func seal(tb testing.TB, plain []byte, wrap keyprovider.WrapType) (ocispec.Descriptor, []byte) {
	tb.Helper()
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(plain), Size: int64(len(plain))}
	ec := &config.EncryptConfig{Parameters: map[string][][]byte{"wrap": {[]byte(wrap)}}}
	r, finish, err := ocicrypt.EncryptLayer(ec, bytes.NewReader(plain), desc)
	if err != nil {
		tb.Fatal(err)
	}
	ciphertext, err := io.ReadAll(r)
	if err != nil {
		tb.Fatal(err)
	}
	annotations, err := finish()
	if err != nil {
		tb.Fatal(err)
	}
	return ocispec.Descriptor{
		MediaType: desc.MediaType + "+encrypted", Digest: digest.FromBytes(ciphertext), Size: int64(len(ciphertext)), Annotations: annotations,
	}, ciphertext
}

type keyMap map[string][]byte

func (k keyMap) Resource(_ context.Context, uri string) ([]byte, error) {
	if key, ok := k[uri]; ok {
		return key, nil
	}
	return nil, fmt.Errorf("no %s: %w", uri, errdefs.ErrNotFound)
}

func random(tb testing.TB, n int) []byte {
	tb.Helper()
	b := make([]byte, n)
	rand.Read(b)
	return b
}

// taking lets an opening take what is read, as the registry does.
type taking struct {
	io.Reader
	opening *Opening
}

func (r taking) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	r.opening.Take(p[:n])
	return n, err
}

func TestDecryptsWhatOcicryptEncrypts(t *testing.T) {
	readers := map[string]func(io.Reader) io.Reader{
		"whole": func(r io.Reader) io.Reader { return r }, "bytes": iotest.OneByteReader, "halves": iotest.HalfReader, "data with EOF": iotest.DataErrReader,
	}
	for _, wrap := range []keyprovider.WrapType{keyprovider.WrapGCM, keyprovider.WrapCTR} {
		for _, n := range []int{0, 1, 31, 32, 4096, 300_001} {
			for name, wrapReader := range readers {
				t.Run(fmt.Sprintf("%s,%d,%s", wrap, n, name), func(t *testing.T) {
					plain := random(t, n)
					desc, ciphertext := seal(t, plain, wrap)
					open, id, err := New(keyMap{keyID: testKEK}).Unlock(t.Context(), desc)
					if err != nil {
						t.Fatal(err)
					}
					got, err := io.ReadAll(open.Reader(wrapReader(bytes.NewReader(ciphertext))))
					if err != nil || !bytes.Equal(got, plain) || id != keyID {
						t.Fatalf("got %d bytes with key %s, %v", len(got), id, err)
					}
					for _, whole := range []bool{false, true} {
						opening := open.Opening(whole)
						got, err := io.ReadAll(opening.Reader(taking{wrapReader(bytes.NewReader(ciphertext)), opening}))
						if err != nil || !bytes.Equal(got, plain) {
							t.Fatalf("opening gives %d bytes, %v", len(got), err)
						}
						if sum := digest.NewDigestFromBytes(digest.SHA256, opening.Sum(nil)); sum != digest.FromBytes(ciphertext) {
							t.Errorf("digest of the ciphertext is %s", sum)
						}
						if whole && opening.Plain() != digest.FromBytes(plain) {
							t.Errorf("digest of the plaintext is %s", opening.Plain())
						}
					}
				})
			}
		}
	}
}

// TestVersion2Packet rewrites a packet to the form that newer key providers write.
func TestVersion2Packet(t *testing.T) {
	plain := random(t, 1000)
	desc, ciphertext := seal(t, plain, keyprovider.WrapGCM)
	raw, err := base64.StdEncoding.DecodeString(desc.Annotations[keyprovider.LayerAnnotation])
	if err != nil {
		t.Fatal(err)
	}
	var doc map[string]any
	if err := json.Unmarshal(raw, &doc); err != nil {
		t.Fatal(err)
	}
	doc["version"], doc["provider"], doc["provider_settings"], doc["annotations"] = "0.1.0", "kbs", map[string]any{}, map[string]any{}
	if raw, err = json.Marshal(doc); err != nil {
		t.Fatal(err)
	}
	desc.Annotations[keyprovider.LayerAnnotation] = base64.StdEncoding.EncodeToString(raw)
	open, _, err := New(keyMap{keyID: testKEK}).Unlock(t.Context(), desc)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(open.Reader(bytes.NewReader(ciphertext))); err != nil || !bytes.Equal(got, plain) {
		t.Fatalf("got %d bytes, %v", len(got), err)
	}
}

func TestTampered(t *testing.T) {
	plain := random(t, 100_000)
	cases := map[string]func([]byte) []byte{
		"first byte":  func(b []byte) []byte { b[0] ^= 1; return b },
		"middle byte": func(b []byte) []byte { b[len(b)/2] ^= 0x80; return b },
		"last byte":   func(b []byte) []byte { b[len(b)-1] ^= 1; return b },
		"cut":         func(b []byte) []byte { return b[:len(b)-1] },
		"longer":      func(b []byte) []byte { return append(b, 0) },
		"empty":       func([]byte) []byte { return nil },
	}
	for name, change := range cases {
		t.Run(name, func(t *testing.T) {
			desc, ciphertext := seal(t, plain, keyprovider.WrapGCM)
			open, _, err := New(keyMap{keyID: testKEK}).Unlock(t.Context(), desc)
			if err != nil {
				t.Fatal(err)
			}
			changed, opening := change(ciphertext), open.Opening(true)
			for _, r := range []io.Reader{open.Reader(bytes.NewReader(changed)), opening.Reader(taking{bytes.NewReader(changed), opening})} {
				_, err = io.Copy(io.Discard, r)
				if !errors.Is(err, ErrTampered) || !errors.Is(err, errdefs.ErrDataLoss) {
					t.Fatalf("got %v", err)
				}
				if _, err := r.Read(make([]byte, 1)); !errors.Is(err, ErrTampered) {
					t.Errorf("the verdict was forgotten: %v", err)
				}
			}
		})
	}
}

func TestUnlockFaults(t *testing.T) {
	change := func(key, value string) func(map[string]string) {
		return func(a map[string]string) { a[key] = value }
	}
	pubOpts := func(edit func(map[string]any)) func(map[string]string) {
		return func(a map[string]string) {
			raw, _ := base64.StdEncoding.DecodeString(a[pubOptsAnnotation])
			var doc map[string]any
			_ = json.Unmarshal(raw, &doc)
			edit(doc)
			raw, _ = json.Marshal(doc)
			a[pubOptsAnnotation] = base64.StdEncoding.EncodeToString(raw)
		}
	}
	zero16 := base64.StdEncoding.EncodeToString(make([]byte, 16))
	cases := map[string]struct {
		wrap    keyprovider.WrapType
		keys    KeySource
		edit    func(map[string]string)
		wantErr error
	}{
		"no broker":             {keys: nil, wantErr: ErrNoKey},
		"no such key":           {keys: keyMap{}, wantErr: errdefs.ErrNotFound},
		"wrong key, GCM":        {keys: keyMap{keyID: make([]byte, 32)}, wantErr: ErrWrongKey},
		"wrong key, CTR":        {wrap: keyprovider.WrapCTR, keys: keyMap{keyID: make([]byte, 32)}, wantErr: ErrWrongKey},
		"key of 16 bytes":       {keys: keyMap{keyID: make([]byte, 16)}, wantErr: ErrWrongKey},
		"no annotations":        {edit: func(a map[string]string) { clear(a) }, wantErr: ErrMalformed},
		"no wrapped key":        {edit: func(a map[string]string) { delete(a, keyprovider.LayerAnnotation) }, wantErr: ErrMalformed},
		"no public options":     {edit: func(a map[string]string) { delete(a, pubOptsAnnotation) }, wantErr: ErrMalformed},
		"packet is not base64":  {edit: change(keyprovider.LayerAnnotation, "%%%"), wantErr: ErrMalformed},
		"packet is not JSON":    {edit: change(keyprovider.LayerAnnotation, base64.StdEncoding.EncodeToString([]byte("{"))), wantErr: ErrMalformed},
		"packet is empty":       {edit: change(keyprovider.LayerAnnotation, base64.StdEncoding.EncodeToString([]byte("{}"))), wantErr: ErrMalformed},
		"packet is huge":        {edit: change(keyprovider.LayerAnnotation, strings.Repeat("A", 1<<20)), wantErr: ErrMalformed},
		"too many packets":      {edit: change(keyprovider.LayerAnnotation, strings.Repeat("e30=,", 40)), wantErr: ErrMalformed},
		"options are no base64": {edit: change(pubOptsAnnotation, "%%%"), wantErr: ErrMalformed},
		"options are no JSON":   {edit: change(pubOptsAnnotation, "e30"), wantErr: ErrMalformed},
		"other cipher":          {edit: pubOpts(func(d map[string]any) { d["cipher"] = "ROT13" }), wantErr: errdefs.ErrNotImplemented},
		"short HMAC":            {edit: pubOpts(func(d map[string]any) { d["hmac"] = "AAAA" }), wantErr: ErrMalformed},
		"other nonce": {edit: pubOpts(func(d map[string]any) {
			d["cipheroptions"] = map[string]any{"nonce": zero16}
		}), wantErr: ErrMalformed},
		"for another recipient": {edit: func(a map[string]string) {
			delete(a, keyprovider.LayerAnnotation)
			a[keysPrefix+"jwe"] = "x"
		}, wantErr: errdefs.ErrNotImplemented},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			if tc.wrap == "" {
				tc.wrap = keyprovider.WrapGCM
			}
			desc, _ := seal(t, []byte("text"), tc.wrap)
			if tc.edit != nil {
				desc.Annotations = maps.Clone(desc.Annotations)
				tc.edit(desc.Annotations)
				tc.keys = keyMap{keyID: testKEK}
			}
			_, _, err := New(tc.keys).Unlock(t.Context(), desc)
			if !errors.Is(err, tc.wantErr) {
				t.Fatalf("got %v, want %v", err, tc.wantErr)
			}
			if !strings.Contains(err.Error(), desc.Digest.String()) {
				t.Errorf("error does not name the layer: %v", err)
			}
			if tc.edit == nil && !strings.Contains(err.Error(), keyID) {
				t.Errorf("error does not name the key: %v", err)
			}
		})
	}
}

func TestSecondRecipient(t *testing.T) {
	desc, _ := seal(t, []byte("text"), keyprovider.WrapGCM)
	other, _ := seal(t, []byte("text"), keyprovider.WrapGCM)
	raw, err := base64.StdEncoding.DecodeString(other.Annotations[keyprovider.LayerAnnotation])
	if err != nil {
		t.Fatal(err)
	}
	foreign := base64.StdEncoding.EncodeToString(bytes.ReplaceAll(raw, []byte("image/test"), []byte("image/else")))
	desc.Annotations[keyprovider.LayerAnnotation] = foreign + "," + desc.Annotations[keyprovider.LayerAnnotation]
	_, id, err := New(keyMap{keyID: testKEK}).Unlock(t.Context(), desc)
	if err != nil || id != keyID {
		t.Fatalf("got key %q, %v", id, err)
	}
}

// countingKeys tells how often a key was asked for, and can change it.
type countingKeys struct {
	calls atomic.Int32
	key   atomic.Pointer[[]byte]
}

func (c *countingKeys) Resource(context.Context, string) ([]byte, error) {
	c.calls.Add(1)
	return *c.key.Load(), nil
}

func TestKeyIsFetchedOnceAndAgainAfterRotation(t *testing.T) {
	src := &countingKeys{}
	old := bytes.Repeat([]byte{9}, keyprovider.KEKSize)
	src.key.Store(&testKEK)
	d := New(src)
	desc, _ := seal(t, []byte("text"), keyprovider.WrapGCM)
	for range 3 {
		if _, _, err := d.Unlock(t.Context(), desc); err != nil {
			t.Fatal(err)
		}
	}
	if n := src.calls.Load(); n != 1 {
		t.Errorf("key was fetched %d times", n)
	}
	d.keks[keyID] = old
	if _, _, err := d.Unlock(t.Context(), desc); err != nil {
		t.Errorf("after the key was replaced: %v", err)
	}
	if n := src.calls.Load(); n != 2 {
		t.Errorf("key was fetched %d times", n)
	}
}

func FuzzUnlock(f *testing.F) {
	const text = "some text to begin with"
	desc, ciphertext := seal(f, []byte(text), keyprovider.WrapCTR)
	f.Add(desc.Annotations[keyprovider.LayerAnnotation], desc.Annotations[pubOptsAnnotation], ciphertext)
	f.Add("e30=", "e30=", []byte{})
	f.Add(",,", "", []byte{1})
	d := New(keyMap{keyID: testKEK})
	f.Fuzz(func(t *testing.T, packet, pub string, body []byte) {
		open, _, err := d.Unlock(t.Context(), ocispec.Descriptor{Digest: desc.Digest, Annotations: map[string]string{
			keyprovider.LayerAnnotation: packet, pubOptsAnnotation: pub,
		}})
		if err != nil {
			return
		}
		// Without the key nobody can make another text that passes. (Workers of the fuzzer have layers of their own, so the
		// ciphertext is no measure.)
		if got, err := io.ReadAll(open.Reader(bytes.NewReader(body))); err == nil && string(got) != text {
			t.Error("a changed layer was accepted")
		}
	})
}

func BenchmarkReader(b *testing.B) {
	plain := make([]byte, 16<<20)
	desc, ciphertext := seal(b, plain, keyprovider.WrapGCM)
	d := New(keyMap{keyID: testKEK})
	buf := make([]byte, 256<<10)
	b.SetBytes(int64(len(plain)))
	b.ReportAllocs()
	for b.Loop() {
		open, _, err := d.Unlock(b.Context(), desc)
		if err != nil {
			b.Fatal(err)
		}
		r := open.Reader(bytes.NewReader(ciphertext))
		for err == nil {
			_, err = r.Read(buf)
		}
		if !errors.Is(err, io.EOF) {
			b.Fatal(err)
		}
	}
}
