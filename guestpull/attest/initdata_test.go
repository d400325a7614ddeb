package attest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/guestpull/attest/attesttest"
	"github.com/coffer-project/coffer/proto/kbs"
)

func TestCheckInitData(t *testing.T) {
	sum256, sum384, sum512 := sha256.Sum256([]byte("x")), sha512.Sum384([]byte("x")), sha512.Sum512([]byte("x"))
	_, raw, _ := genoa(t)
	snp := func(hostData []byte) Platform {
		report := bytes.Clone(raw)
		copy(report[0xc0:0xe0], append(bytes.Clone(hostData), make([]byte, 32)...))
		return open(t, kbs.TEESNP, attesttest.New("sev_guest", func([]byte) ([]byte, []byte, error) { return report, nil, nil }), "", nil)
	}
	tdx := func(configID []byte) Platform {
		report := tdReport()
		copy(report[tdConfigIDPos:tdConfigIDPos+48], append(bytes.Clone(configID), make([]byte, 48)...))
		return open(t, kbs.TEETDX, attesttest.New("tdx_guest", nil), "", report)
	}
	mute := open(t, kbs.TEETDX, attesttest.New("tdx_guest", nil), "", nil)
	for name, tc := range map[string]struct {
		platform Platform
		digest   []byte
		attested bool
		reason   string
	}{
		"SNP, sha256":              {snp(sum256[:]), sum256[:], true, ""},
		"SNP, sha384 is cut":       {snp(sum384[:32]), sum384[:], true, ""},
		"SNP, sha512 is cut":       {snp(sum512[:32]), sum512[:], true, ""},
		"TDX, sha256 is padded":    {tdx(sum256[:]), sum256[:], true, ""},
		"TDX, sha384":              {tdx(sum384[:]), sum384[:], true, ""},
		"TDX, sha512 is cut":       {tdx(sum512[:48]), sum512[:], true, ""},
		"SNP, none":                {snp(nil), nil, false, ""},
		"TDX, none":                {tdx(nil), nil, false, ""},
		"sample":                   {NewSample(), sum256[:], false, ""},
		"sample, none":             {NewSample(), nil, false, ""},
		"SNP, another document":    {snp(sum256[:]), sum384[:], false, "another initdata digest"},
		"TDX, another document":    {tdx(sum384[:]), sum256[:], false, "another initdata digest"},
		"TDX, not padded":          {tdx(append(sum256[:], 1)), sum256[:], false, "another initdata digest"},
		"SNP, not launched with":   {snp(nil), sum256[:], false, "another initdata digest"},
		"SNP, document kept back":  {snp(sum256[:]), nil, false, "gave no initdata"},
		"TDX, document kept back":  {tdx(sum384[:]), nil, false, "gave no initdata"},
		"TDX, module is mute":      {mute, sum384[:], false, "ask the TEE"},
		"TDX, mute and none given": {mute, nil, false, "ask the TEE"},
	} {
		attested, err := CheckInitData(t.Context(), tc.platform, tc.digest)
		if tc.reason != "" && (!errors.Is(err, errdefs.ErrFailedPrecondition) || !strings.Contains(err.Error(), tc.reason)) || tc.reason == "" && err != nil || attested != tc.attested {
			t.Errorf("%s: %v, %v", name, attested, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, p := range []Platform{snp(nil), tdx(nil)} {
		if _, err := CheckInitData(ctx, p, nil); !errors.Is(err, context.Canceled) {
			t.Errorf("%s, cancelled: %v", p.TEE(), err)
		}
	}
}

// TestMeasurement: what is told to people is the field that evidence has.
func TestMeasurement(t *testing.T) {
	report := tdReport()
	copy(report[528:576], bytes.Repeat([]byte{7}, 48))
	td := open(t, kbs.TEETDX, attesttest.New("tdx_guest", nil), "", report)
	if got, err := td.Measurement(t.Context()); err != nil || !bytes.Equal(got, bytes.Repeat([]byte{7}, 48)) {
		t.Errorf("TDX: %x, %v", got, err)
	}
	mute := open(t, kbs.TEETDX, attesttest.New("tdx_guest", nil), "", nil)
	if got, err := mute.Measurement(t.Context()); err == nil {
		t.Errorf("a TDX module without a report: %x", got)
	}
	_, raw, _ := genoa(t)
	snp := open(t, kbs.TEESNP, attesttest.New("sev_guest", func([]byte) ([]byte, []byte, error) { return raw, nil, nil }), "", nil)
	if got, err := snp.Measurement(t.Context()); err != nil || !bytes.Equal(got, raw[0x90:0xc0]) {
		t.Errorf("SNP: %x, %v", got, err)
	}
}
