package initdata

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/proto/kbs"
)

// AttestationConfig says in coffer.toml which guests the document is for.
type AttestationConfig struct {
	// TEEs are the kinds of guests that may use the document: "snp", "tdx", "sample", ForgedSNP. Empty means all of them; guests without a TEE
	// then have no evidence, for they send that of a sample or of a forger only where they are listed.
	TEEs []string `toml:"tees"`
}

// ForgedSNP is the kind of guests without a TEE whose host plays an SNP processor, for tests and demonstrations: it proves nothing.
const ForgedSNP = "forged-snp"

// knownTEEs are those that a guest can be.
var knownTEEs = []string{string(kbs.TEESNP), string(kbs.TEETDX), string(kbs.TEESample), ForgedSNP}

func (a AttestationConfig) validate() error {
	for _, tee := range a.TEEs {
		if !slices.Contains(knownTEEs, tee) {
			return fmt.Errorf("attestation.tees has %q, which is none of %s: %w", clip(tee), strings.Join(knownTEEs, ", "), errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

func (a AttestationConfig) encode() string {
	if len(a.TEEs) == 0 {
		return ""
	}
	quoted := make([]string, len(a.TEEs))
	for i, tee := range a.TEEs {
		quoted[i] = strconv.Quote(tee)
	}
	return fmt.Sprintf("[attestation]\ntees = [%s]\n", strings.Join(quoted, ", "))
}

// CheckTEE returns FailedPrecondition unless the document is for guests of the kind tee. A nil document is for all kinds.
func (d *Document) CheckTEE(tee string) error {
	c, err := d.Coffer()
	if err != nil {
		return err
	}
	if wanted := c.Attestation.TEEs; len(wanted) > 0 && !slices.Contains(wanted, tee) {
		return fmt.Errorf("initdata is for TEEs of the kind %s only (attestation.tees in %s), and this machine is %s: %w", strings.Join(wanted, ", "), KeyCoffer, tee, errdefs.ErrFailedPrecondition)
	}
	return nil
}
