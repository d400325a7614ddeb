package attest

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/guestpull/attest/attesttest"
	"github.com/coffer-project/coffer/proto/initdata"
	"github.com/coffer-project/coffer/proto/kbs"
)

// What proves nothing is never the guest's own idea: without the document's word a machine without a TEE has no evidence, and a TEE is
// never anything else.
func TestSubstitute(t *testing.T) {
	genuine, err := NewTSMWith(kbs.TEESNP, attesttest.New("sev_guest", nil), "", nil)
	if err != nil {
		t.Fatal(err)
	}
	forged, absent := NewForged(nil), errors.New("nobody plays one")
	for name, tc := range map[string]struct {
		platform Platform
		coffer   string
		forger   error
		kind     string
		evidence bool // sample's
		wantErr  error
	}{
		"nothing said":              {Bare{}, "", nil, "sample", false, nil},
		"real ones alone":           {Bare{}, "attestation.tees = [\"snp\", \"tdx\"]", nil, "sample", false, nil}, // CheckTEE refuses it
		"sample":                    {Bare{}, "attestation.tees = [\"sample\"]", nil, "sample", true, nil},
		"real or sample":            {Bare{}, "attestation.tees = [\"snp\", \"sample\"]", nil, "sample", true, nil},
		"forged":                    {Bare{}, "attestation.tees = [\"forged-snp\"]", nil, "forged-snp", false, nil},
		"forged before sample":      {Bare{}, "attestation.tees = [\"sample\", \"forged-snp\"]", nil, "forged-snp", false, nil},
		"forged, and nobody there":  {Bare{}, "attestation.tees = [\"sample\", \"forged-snp\"]", absent, "", false, absent},
		"unreadable":                {Bare{}, "attestation.tees = [\"sgx\"]", nil, "", false, errdefs.ErrInvalidArgument},
		"TEE, sample allowed":       {genuine, "attestation.tees = [\"sample\"]", nil, "snp", false, nil}, // likewise
		"TEE, forgery allowed":      {genuine, "attestation.tees = [\"forged-snp\"]", nil, "snp", false, nil},
		"TEE, forgery allowed, too": {genuine, "attestation.tees = [\"snp\", \"forged-snp\"]", nil, "snp", false, nil},
	} {
		d := &initdata.Document{Data: map[string]string{initdata.KeyCoffer: tc.coffer}}
		p, err := Substitute(t.Context(), tc.platform, d, func(context.Context) (Platform, error) { return forged, tc.forger })
		if !errors.Is(err, tc.wantErr) {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil || tc.wantErr != nil {
			continue
		}
		if _, sample := p.(*Sample); p.Kind() != tc.kind || sample != tc.evidence || tc.platform == genuine && p != genuine {
			t.Errorf("%s: %T of kind %s", name, p, p.Kind())
		}
	}
	if p, err := Substitute(t.Context(), Bare{}, nil, nil); err != nil || p != (Bare{}) {
		t.Errorf("no document: %T, %v", p, err)
	}
}

func TestBareSaysWhatToDo(t *testing.T) {
	_, err := Bare{}.Evidence(t.Context(), nil)
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), `attestation.tees = ["sample"]`) {
		t.Fatalf("%v", err)
	}
	_, line, _ := strings.Cut(err.Error(), "with the line ")
	line, _, _ = strings.Cut(line, ", or")
	c, parseErr := initdata.ParseCoffer(line + "\n[policy]\ndefault = \"strict\"\n")
	if parseErr != nil || len(c.Attestation.TEEs) != 1 {
		t.Errorf("the line that it names, %q, is no good: %v", line, parseErr)
	}
}
