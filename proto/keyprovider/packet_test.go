package keyprovider

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/proto/kbs"
)

// The packets were sealed by another implementation (Python's cryptography) with the KEK 00 01 .. 1f.
const (
	vectorPlain = `{"symkey":"c2VjcmV0"}`
	vectorGCM   = `{"kid":"kbs:///default/key/1","wrapped_data":"MzmtHxSCM+ccWH2L6DMAni+UNij2Bw25TpIbMTJSPfPFxOeyNQ==","iv":"ZGVmZ2hpamtsbW5v","wrap_type":"A256GCM"}`
	vectorCTR   = `{"version":"0.1.0","kid":"kbs://kbs:8080/default/key/1","provider":"kbs","wrapped_data":"6PpiWdtL3jRct53I1On6v9i/uyd9","iv":"ZGVmZ2hpamtsbW5vcHFycw==","wrap_type":"A256CTR","provider_settings":{},"annotations":{}}`
)

func vectorKEK() []byte {
	kek := make([]byte, KEKSize)
	for i := range kek {
		kek[i] = byte(i)
	}
	return kek
}

func TestVectors(t *testing.T) {
	for name, raw := range map[string]string{"version 1, GCM": vectorGCM, "version 2, CTR": vectorCTR} {
		t.Run(name, func(t *testing.T) {
			p, err := ParsePacket([]byte(raw))
			if err != nil {
				t.Fatal(err)
			}
			if p.KeyID.Path() != "default/key/1" {
				t.Errorf("key %s", p.KeyID)
			}
			if plain, err := p.Open(vectorKEK()); err != nil || string(plain) != vectorPlain {
				t.Errorf("got %q, %v", plain, err)
			}
		})
	}
}

func TestSealOpen(t *testing.T) {
	uri := kbs.ResourceURI{Repository: "default", Type: "key", Tag: "1"}
	for _, wrapType := range []WrapType{WrapGCM, WrapCTR} {
		t.Run(string(wrapType), func(t *testing.T) {
			p, err := Seal(vectorKEK(), uri, wrapType, []byte(vectorPlain))
			if err != nil {
				t.Fatal(err)
			}
			other, err := Seal(vectorKEK(), uri, wrapType, []byte(vectorPlain))
			if err != nil || bytes.Equal(other.IV, p.IV) || bytes.Equal(other.WrappedData, p.WrappedData) {
				t.Errorf("IV is not fresh: %v", err)
			}
			raw, err := p.Encode()
			if err != nil {
				t.Fatal(err)
			}
			var members map[string]any
			if err := json.Unmarshal(raw, &members); err != nil || len(members) != 4 {
				t.Errorf("not the version 1 form: %s, %v", raw, err)
			}
			back, err := ParsePacket(raw)
			if err != nil {
				t.Fatal(err)
			}
			if plain, err := back.Open(vectorKEK()); err != nil || string(plain) != vectorPlain {
				t.Errorf("got %q, %v", plain, err)
			}
		})
	}
}

func TestOpenRefuses(t *testing.T) {
	wrong := vectorKEK()
	wrong[0] ^= 1
	p, err := ParsePacket([]byte(vectorGCM))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Open(wrong); !errors.Is(err, errdefs.ErrPermissionDenied) || !strings.Contains(err.Error(), "kbs:///default/key/1") {
		t.Errorf("wrong key: %v", err)
	}
	if _, err := p.Open(wrong[:16]); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("short key: %v", err)
	}
	p.WrappedData[0] ^= 1
	if _, err := p.Open(vectorKEK()); !errors.Is(err, errdefs.ErrPermissionDenied) {
		t.Errorf("changed packet: %v", err)
	}
	if _, err := Seal(vectorKEK()[:31], p.KeyID, WrapGCM, []byte("x")); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("seal with short key: %v", err)
	}
	if _, err := Seal(vectorKEK(), p.KeyID, "A128GCM", []byte("x")); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("seal with unknown cipher: %v", err)
	}
	if _, err := Seal(vectorKEK(), p.KeyID, WrapGCM, nil); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("seal of nothing: %v", err)
	}
}

func TestParsePacketRefuses(t *testing.T) {
	edit := func(old, by string) string {
		if !strings.Contains(vectorGCM, old) {
			t.Fatalf("%q is not in the vector", old)
		}
		return strings.Replace(vectorGCM, old, by, 1)
	}
	for name, tc := range map[string]struct {
		raw  string
		want error
	}{
		"empty":          {"", errdefs.ErrInvalidArgument},
		"array":          {"[]", errdefs.ErrInvalidArgument},
		"kid":            {edit("kbs:///default/key/1", "file:///etc/shadow"), errdefs.ErrInvalidArgument},
		"kid escapes":    {edit("default/key/1", "../key/1"), errdefs.ErrInvalidArgument},
		"wrap type":      {edit("A256GCM", "A256CBC"), errdefs.ErrInvalidArgument},
		"no wrap type":   {edit(`,"wrap_type":"A256GCM"`, ""), errdefs.ErrInvalidArgument},
		"iv of CTR":      {edit("A256GCM", "A256CTR"), errdefs.ErrInvalidArgument},
		"iv":             {edit("ZGVm", "!!!!"), errdefs.ErrInvalidArgument},
		"data":           {edit("MzmtHx", "!!!!!!"), errdefs.ErrInvalidArgument},
		"only a tag":     {edit("MzmtHxSCM+ccWH2L6DMAni+UNij2Bw25TpIbMTJSPfPFxOeyNQ==", "AAAAAAAAAAAAAAAAAAAAAA=="), errdefs.ErrInvalidArgument},
		"unknown member": {edit(`{"kid"`, `{"x":1,"kid"`), errdefs.ErrInvalidArgument},
		"duplicate":      {edit(`{"kid"`, `{"kid":"kbs:///a/b/c","kid"`), errdefs.ErrInvalidArgument},
		"settings":       {edit(`{"kid"`, `{"provider_settings":{"a":1},"kid"`), errdefs.ErrInvalidArgument},
		"provider":       {edit(`{"kid"`, `{"provider":"aliyun","kid"`), errdefs.ErrNotImplemented},
		"version":        {edit(`{"kid"`, `{"version":"0.2.0","kid"`), errdefs.ErrNotImplemented},
		"oversize":       {edit("MzmtHx", strings.Repeat("A", MaxPacket)), errdefs.ErrInvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			if p, err := ParsePacket([]byte(tc.raw)); !errors.Is(err, tc.want) {
				t.Errorf("got %+v, %v", p, err)
			}
		})
	}
}

func FuzzParsePacket(f *testing.F) {
	f.Add([]byte(vectorGCM))
	f.Add([]byte(vectorCTR))
	f.Fuzz(func(t *testing.T, raw []byte) {
		p, err := ParsePacket(raw)
		if err != nil {
			return
		}
		encoded, err := p.Encode()
		if err != nil {
			return // an escape-heavy packet may have grown beyond the limit
		}
		back, err := ParsePacket(encoded)
		if err != nil || back.KeyID != p.KeyID || !bytes.Equal(back.WrappedData, p.WrappedData) || !bytes.Equal(back.IV, p.IV) {
			t.Errorf("round trip of %q: %v", raw, err)
		}
	})
}
