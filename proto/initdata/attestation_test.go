package initdata

import (
	"errors"
	"slices"
	"testing"

	"github.com/containerd/errdefs"
)

func TestCheckTEE(t *testing.T) {
	for name, tc := range map[string]struct {
		coffer, tee string
		want        error
	}{
		"nothing said":        {"", "sample", nil},
		"empty list":          {"[attestation]\ntees = []\n", "sample", nil},
		"the one":             {"[attestation]\ntees = [\"snp\"]\n", "snp", nil},
		"one of two":          {"[attestation]\ntees = [\"snp\", \"tdx\"]\n", "tdx", nil},
		"sample allowed":      {"[attestation]\ntees = [\"sample\"]\n", "sample", nil},
		"sample not allowed":  {"[attestation]\ntees = [\"snp\", \"tdx\"]\n", "sample", errdefs.ErrFailedPrecondition},
		"other one":           {"[attestation]\ntees = [\"snp\"]\n", "tdx", errdefs.ErrFailedPrecondition},
		"real one unexpected": {"[attestation]\ntees = [\"sample\"]\n", "snp", errdefs.ErrFailedPrecondition},
		"forged":              {"[attestation]\ntees = [\"forged-snp\"]\n", ForgedSNP, nil},
		"forged not allowed":  {"[attestation]\ntees = [\"snp\", \"sample\"]\n", ForgedSNP, errdefs.ErrFailedPrecondition},
		"real one, forged":    {"[attestation]\ntees = [\"forged-snp\"]\n", "snp", errdefs.ErrFailedPrecondition},
		"unknown kind":        {"[attestation]\ntees = [\"snp\", \"sgx\"]\n", "snp", errdefs.ErrInvalidArgument},
	} {
		d := &Document{Data: map[string]string{KeyCoffer: tc.coffer}}
		if err := d.CheckTEE(tc.tee); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := (*Document)(nil).CheckTEE("sample"); err != nil {
		t.Errorf("no document: %v", err)
	}
}

func TestEncodeAttestation(t *testing.T) {
	for name, c := range map[string]CofferConfig{
		"nothing": {}, "one": {Attestation: AttestationConfig{TEEs: []string{"sample"}}}, "two": {Attestation: AttestationConfig{TEEs: []string{"snp", "tdx"}}},
	} {
		got, err := ParseCoffer(c.Encode())
		if err != nil || !slices.Equal(got.Attestation.TEEs, c.Attestation.TEEs) || (c.Encode() == "") != (name == "nothing") {
			t.Errorf("%s: %q became %+v, %v", name, c.Encode(), got, err)
		}
	}
}
