package integration

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/coffer-project/coffer/integration/forgedsnp"
	"github.com/coffer-project/coffer/integration/harness"
)

// TestMeasuredGuest runs guests on a forged SNP processor, and has a broker release a key to the guest that its owner measured: with one byte
// of the guest image changed the key stays where it is, as it does on a machine without a TEE.
func TestMeasuredGuest(t *testing.T) {
	t.Parallel()
	requireNode(t)
	tools, err := harness.FindTools()
	if err != nil {
		t.Fatal(err)
	}
	initrd := filepath.Join(t.TempDir(), "initrd.cpio")
	if err := forgedsnp.ChangeByte(tools.Initrd, initrd); err != nil {
		t.Fatal(err)
	}
	node := ownNode(t, harness.Options{ForgedSNP: true, Handlers: map[string]string{"changed": fmt.Sprintf("[hypervisor]\ninitrd = %q\n", initrd)}})
	ctx, cancel := context.WithTimeout(t.Context(), lifeBudget)
	defer cancel()
	if err := node.TrustGuest(ctx); err != nil {
		t.Fatal(err)
	}
	reference := encryptedImage(t, node)
	for _, tc := range []struct {
		name, handler string
		tees          []string
		refused       []string // words of the refusal; nil means that the container runs
	}{
		{"changed", "changed", nil, []string{"key broker", "policy denied", "cpu0 was appraised as", "warning"}},
		{"no-TEE", "coffer", []string{}, []string{"this machine has no TEE", `attestation.tees = ["sample"]`}},
		{"measured", "coffer", nil, nil},
	} {
		annotations, err := node.PodAnnotations(harness.Guest{TEEs: tc.tees})
		if err != nil {
			t.Fatal(err)
		}
		pod := runHandlerPod(t, node, tc.handler, node.CRI.PodConfig("snp-"+tc.name, annotations))
		pull(t, pod, reference)
		output, refused, fault := try(t.Context(), node, pod, "app", reference, "/bin/echo", "released")
		switch {
		case fault != nil:
			t.Fatalf("%s: %v", tc.name, fault)
		case tc.refused != nil:
			wantRefused(t, refused, tc.refused...)
		case refused != nil || output != "released\n":
			t.Errorf("%s: %q, %v", tc.name, output, refused)
		}
	}
}
