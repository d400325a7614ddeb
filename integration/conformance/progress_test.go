package main

import (
	"io"
	"os"
	"testing"
)

func TestProgress(t *testing.T) {
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p := newProgress(write, "coffer")
	const output = `Will run 4 of 9 specs
SSS
------------------------------
[k8s.io] Image works
/src/image.go:1
  STEP: pull
• [1.203 seconds]
------------------------------
[k8s.io] Image is gone [Conformance]
/src/image.go:2
• [FAILED] [0.012 seconds]
  • [FAILED] in the text of a failure
------------------------------
[k8s.io] AppArmor works
S [SKIPPED] [0.001 seconds]
------------------------------
[k8s.io] Image panics
• [PANICKED!] [0.012 seconds]
`
	// Bytes come in pieces that do not end with lines.
	for i := 0; i < len(output); i += 7 {
		if _, err := p.Write([]byte(output[i:min(i+7, len(output))])); err != nil {
			t.Fatal(err)
		}
	}
	if p.total != 4 || p.pass != 1 || p.fail != 2 || p.skip != 1 {
		t.Errorf("%d specs, %d passed, %d failed, %d skipped, want 4, 1, 2, 1", p.total, p.pass, p.fail, p.skip)
	}
	write.Close()
	said, err := io.ReadAll(read)
	if err != nil {
		t.Fatal(err)
	}
	if want := "  coffer failed: Image is gone [Conformance]\n  coffer failed: Image panics\n"; string(said) != want {
		t.Errorf("it said %q, want %q", said, want)
	}
}
