package kbs

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
)

// What a client of Confidential Containers says must be understood, and be bound to what our reading of it gives: its report data is the
// digest of its own canonical JSON.
func TestDocumentsOfCoCo(t *testing.T) {
	read := func(name string, into any) {
		t.Helper()
		raw, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			t.Fatal(err)
		}
		if err := Decode(raw, MaxAttestation, into); err != nil {
			t.Fatal(err)
		}
	}
	var request Request
	read("coco-request.json", &request)
	var params HashParams
	if err := Decode(request.ExtraParams, MaxRequest, &params); err != nil || request.Version != Version || request.TEE != TEESample || len(params.Supported) < 3 {
		t.Errorf("got %+v, %+v, %v", request, params, err)
	}
	var attestation Attestation
	read("coco-attestation.json", &attestation)
	var evidence struct {
		ReportData []byte `json:"report_data"`
	}
	if err := json.Unmarshal(attestation.Evidence.Primary, &evidence); err != nil {
		t.Fatal(err)
	}
	runtime := attestation.RuntimeData
	want, err := ReportData(DefaultHash, runtime.Nonce, runtime.TEEPublicKey, attestation.Evidence.Additional)
	if err != nil || !bytes.Equal(evidence.ReportData, want) || attestation.InitData != nil {
		t.Errorf("got %+v bound to %x, want %x, %v", attestation, evidence.ReportData, want, err)
	}
}
