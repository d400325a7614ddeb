package image

import (
	"io"
	"slices"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	guestpull "github.com/coffer-project/coffer/proto/guestpull/v1"
	"github.com/coffer-project/coffer/proto/imagepolicy"
)

// Phases of a pull, in order.
const (
	phaseAttest = iota
	phaseResolve
	phaseVerify
	phaseFetch
	phaseDecrypt
	phaseDecompress
	phaseApply
	phasePublish
	phaseCount
)

var phaseNames = [phaseCount]string{"attest", "resolve", "verify", "fetch", "decrypt", "decompress", "apply", "publish"}

// Report says what a pull did. It holds no content and no key.
type Report struct {
	Reference      string
	ManifestDigest digest.Digest
	// Phases have the time that each stage itself was at work, without that of the stages it reads from. Layers run side
	// by side, so the sum may be more than the time that passed. attest is the wait for keys; it is short when the keys
	// are there from an earlier pull.
	Phases []Phase
	Layers []LayerReport
	// Verdict is the image security policy's; empty without a policy.
	Verdict imagepolicy.Verdict
	// KeyIDs name the keys that were used, each once.
	KeyIDs []string
}

// Phase is one stage's time in microseconds.
type Phase struct {
	Name   string
	Micros int64
}

// LayerReport describes one layer.
type LayerReport struct {
	Digest    digest.Digest
	MediaType string
	// Packed is the layer's size in the registry, Unpacked the sum of its file sizes, in bytes. Unpacked is 0 when the
	// layer was there from an earlier pull.
	Packed, Unpacked int64
	Encrypted        bool
}

// Proto returns the report as the host gets it.
func (r *Report) Proto() *guestpull.PullReport {
	out := &guestpull.PullReport{
		Reference:      r.Reference,
		ManifestDigest: r.ManifestDigest.String(),
		KeyIds:         r.KeyIDs,
		Verdict:        &guestpull.ImageVerdict{Scope: r.Verdict.Scope},
	}
	for _, a := range r.Verdict.Accepted {
		out.Verdict.Accepted = append(out.Verdict.Accepted, &guestpull.ImageAcceptance{
			Rule: a.Rule, KeyId: a.KeyID, KeyUri: a.KeyURI, Digest: a.Digest.String(), Identity: a.Identity, Form: a.Form,
		})
	}
	for _, p := range r.Phases {
		out.Phases = append(out.Phases, &guestpull.Phase{Name: p.Name, Micros: p.Micros})
	}
	for _, l := range r.Layers {
		out.Layers = append(out.Layers, &guestpull.Layer{
			Digest: l.Digest.String(), MediaType: l.MediaType,
			CompressedBytes: l.Packed, UnpackedBytes: l.Unpacked, Encrypted: l.Encrypted,
		})
	}
	return out
}

// recorder adds up times from all goroutines of a pull.
type recorder struct {
	reference string
	pull      *tracked
	spent     [phaseCount]atomic.Int64
}

func newRecorder(reference string, pull *tracked) *recorder {
	return &recorder{reference: reference, pull: pull}
}

func (r *recorder) add(phase int, d time.Duration) {
	r.spent[phase].Add(int64(max(d, 0)))
}

// span measures until the function that it returns is called.
func (r *recorder) span(phase int) func() {
	start := time.Now()
	return func() { r.add(phase, time.Since(start)) }
}

// stage measures the reads of a stage, without those of the stage that it reads from.
func (r *recorder) stage(phase int, src io.Reader, inner *clock) *clock {
	return &clock{r: src, inner: inner, report: func(d time.Duration) { r.add(phase, d) }}
}

func (r *recorder) report(found *resolved) Report {
	out := Report{Reference: r.reference, ManifestDigest: found.digest, Verdict: found.verdict}
	for phase, name := range phaseNames {
		out.Phases = append(out.Phases, Phase{Name: name, Micros: time.Duration(r.spent[phase].Load()).Microseconds()})
	}
	for _, l := range found.layers {
		out.Layers = append(out.Layers, LayerReport{
			Digest: l.desc.Digest, MediaType: l.desc.MediaType,
			Packed: l.desc.Size, Unpacked: l.unpacked, Encrypted: l.kind.Encrypted,
		})
		if l.keyID != "" && !slices.Contains(out.KeyIDs, l.keyID) {
			out.KeyIDs = append(out.KeyIDs, l.keyID)
		}
	}
	return out
}
