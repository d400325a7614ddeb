package main

import (
	"bytes"
	"errors"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/guestpull/attest"
	"github.com/coffer-project/coffer/guestpull/attest/attesttest"
	"github.com/coffer-project/coffer/guestpull/boot"
	"github.com/coffer-project/coffer/proto/initdata"
	"github.com/coffer-project/coffer/proto/kbs"
)

// launched is a TDX guest whose MRCONFIGID is the digest.
func launched(t *testing.T, digest []byte) attest.Platform {
	t.Helper()
	report := make([]byte, 1024)
	report[0] = 0x81
	copy(report[576:624], digest)
	p, err := attest.NewTSMWith(kbs.TEETDX, attesttest.New("tdx_guest", nil), "", func() ([]byte, error) { return report, nil })
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestAttestedText(t *testing.T) {
	raw := document(t, map[string]string{initdata.KeyPolicy: "package agent_policy"})
	algorithm, digest, err := initdata.Digest(raw)
	if err != nil {
		t.Fatal(err)
	}
	given := &boot.InitData{Raw: raw, Algorithm: algorithm, Digest: digest}
	for name, tc := range map[string]struct {
		document *boot.InitData
		platform attest.Platform
		want     []byte
		wantErr  error
	}{
		"the one":          {given, launched(t, digest), raw, nil},
		"none":             {nil, launched(t, nil), nil, nil},
		"without TEE":      {given, attest.NewSample(), raw, nil},
		"none without TEE": {nil, attest.NewSample(), nil, nil},
		"another":          {given, launched(t, bytes.Repeat([]byte{1}, 48)), nil, errdefs.ErrFailedPrecondition},
		"kept back":        {nil, launched(t, digest), nil, errdefs.ErrFailedPrecondition},
		"slipped in":       {given, launched(t, nil), nil, errdefs.ErrFailedPrecondition},
	} {
		if got, err := attestedText(t.Context(), tc.document, tc.platform); !bytes.Equal(got, tc.want) || !errors.Is(err, tc.wantErr) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}
