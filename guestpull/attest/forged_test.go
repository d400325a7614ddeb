package attest

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/proto/kbs"
)

// FuzzForger answers whatever a host may: what comes of it is SNP evidence over the data that was asked for, or an error.
func FuzzForger(f *testing.F) {
	report := append(append([]byte{3}, make([]byte, 0x50-1)...), append([]byte("asked"), make([]byte, 0x4a0-0x50-5)...)...)
	f.Add(append(append([]byte{0xa0, 4, 0, 0}, report...), 0, 0, 0, 0))
	f.Add(append(append([]byte{0xa0, 4, 0, 0}, report...), append([]byte{24, 0, 0, 0}, make([]byte, 24)...)...))
	f.Add([]byte{0, 0, 0, 0xff})
	f.Fuzz(func(t *testing.T, answer []byte) {
		guest := NewForged(&wire{Reader: bytes.NewReader(answer)})
		raw, err := guest.Evidence(t.Context(), []byte("asked"))
		if err != nil {
			return
		}
		var evidence kbs.SNPEvidence
		if err := json.Unmarshal(raw, &evidence); err != nil || !bytes.HasPrefix(evidence.Report.ReportData, []byte("asked")) {
			t.Errorf("%s: %v", raw, err)
		}
	})
}

// wire swallows what is written to it.
type wire struct{ io.Reader }

func (*wire) Write(p []byte) (int, error) { return len(p), nil }

// A forger that answers nonsense, too much, something else or nothing is an error, not evidence.
func TestForgerOfNoUse(t *testing.T) {
	for name, tc := range map[string]struct {
		answer []byte
		want   error
	}{
		"hangs up":        {nil, io.EOF},
		"ends early":      {[]byte{9, 0, 0, 0, 1}, io.ErrUnexpectedEOF},
		"too much":        {[]byte{0, 0, 0, 0xff}, errdefs.ErrInvalidArgument},
		"no report":       {make([]byte, 8), errdefs.ErrInvalidArgument},
		"another's words": {append(append([]byte{0xa0, 4, 0, 0, 3}, make([]byte, 0x4a0-1)...), 0, 0, 0, 0), errdefs.ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			ours, theirs := net.Pipe()
			defer ours.Close()
			go func() {
				defer theirs.Close()
				request := make([]byte, 64)
				if _, err := io.ReadFull(theirs, request); err != nil || !bytes.HasPrefix(request, []byte("asked")) {
					t.Errorf("the forger got %q, %v", request, err)
				}
				_, _ = theirs.Write(tc.answer) // the guest may have hung up
			}()
			if got, err := NewForged(ours).Evidence(t.Context(), []byte("asked")); !errors.Is(err, tc.want) {
				t.Errorf("got %s, %v", got, err)
			}
		})
	}
}
