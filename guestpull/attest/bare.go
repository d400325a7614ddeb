package attest

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/proto/initdata"
	"github.com/coffer-project/coffer/proto/kbs"
)

// Bare is the Platform of a machine without a TEE. It has no evidence: what stands in for a TEE there, the measured document says. See
// Substitute.
type Bare struct{}

// ErrBare is why a machine without a TEE has no evidence, and what to do. FailedPrecondition.
var ErrBare = fmt.Errorf("this machine has no TEE, so its guest cannot prove what it is. For development it may send sample evidence, "+
	"which proves nothing, if the pod's initdata allows that: begin its %s with the line attestation.tees = [%q], or add --tee %s to cofferctl initdata create: %w",
	initdata.KeyCoffer, kbs.TEESample, kbs.TEESample, errdefs.ErrFailedPrecondition)

// TEE implements Attester: brokers have no name for nothing.
func (Bare) TEE() string { return string(kbs.TEESample) }

// Kind implements Platform.
func (Bare) Kind() string { return string(kbs.TEESample) }

// InitDataField implements Platform: there is none.
func (Bare) InitDataField(context.Context) ([]byte, error) { return nil, nil }

// Evidence implements Attester: it returns ErrBare.
func (Bare) Evidence(context.Context, []byte) (json.RawMessage, error) { return nil, ErrBare }

// Protects tells whether a platform keeps the host out of its guest: not one without a TEE, nor one whose host plays a TEE.
func Protects(p Platform) bool {
	switch p.Kind() {
	case string(kbs.TEESNP), string(kbs.TEETDX):
		return true
	}
	return false
}

// Substitute returns what stands in for the TEE of a machine that has none, as far as the measured document (nil for none) allows: a forged
// SNP processor, which forger opens, or else sample evidence. Any other platform, a real TEE before all, stays as it is.
// InvalidArgument: the document cannot be read. Errors of forger are passed on.
func Substitute(ctx context.Context, p Platform, d *initdata.Document, forger func(context.Context) (Platform, error)) (Platform, error) {
	if _, bare := p.(Bare); !bare {
		return p, nil
	}
	c, err := d.Coffer()
	if err != nil {
		return nil, err
	}
	switch kinds := c.Attestation.TEEs; {
	case slices.Contains(kinds, initdata.ForgedSNP):
		return forger(ctx)
	case slices.Contains(kinds, string(kbs.TEESample)):
		return NewSample(), nil
	}
	return p, nil
}
