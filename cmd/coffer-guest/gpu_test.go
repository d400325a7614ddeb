package main

import (
	"errors"
	"testing"

	"github.com/coffer-project/coffer/guestpull/attest"
	"github.com/coffer-project/coffer/proto/initdata"
)

func TestUnprotectedGPUs(t *testing.T) {
	allowing := "gpu.unprotected = true"
	for name, tc := range map[string]struct {
		platform attest.Platform
		text     string
		wantErr  error
	}{
		"TEE":             {launched(t, nil), "", errUnprotected},
		"TEE, allowed":    {launched(t, nil), allowing, nil},
		"no TEE":          {attest.Bare{}, "", nil},
		"sample":          {attest.NewSample(), "", nil},
		"no TEE, useless": {attest.Bare{}, allowing, nil},
	} {
		c, err := initdata.ParseCoffer(tc.text)
		if err != nil {
			t.Fatal(err)
		}
		if err := unprotected(tc.platform, c); !errors.Is(err, tc.wantErr) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
