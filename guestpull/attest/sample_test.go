package attest

import (
	"context"
	"errors"
	"testing"

	"github.com/containerd/errdefs"
)

func TestSample(t *testing.T) {
	var a Attester = NewSample()
	if a.TEE() != "sample" {
		t.Errorf("tee %q", a.TEE())
	}
	evidence, err := a.Evidence(t.Context(), []byte("abc"))
	if err != nil || string(evidence) != `{"svn":"1","report_data":"YWJj"}` {
		t.Errorf("got %s, %v", evidence, err)
	}
	if _, err := a.Evidence(t.Context(), make([]byte, 65)); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("long report data: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := a.Evidence(ctx, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}
