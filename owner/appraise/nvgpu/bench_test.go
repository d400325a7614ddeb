package nvgpu_test

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/coffer-project/coffer/owner/appraise"
	"github.com/coffer-project/coffer/owner/appraise/collateral"
	"github.com/coffer-project/coffer/owner/appraise/nvgpu"
	"github.com/coffer-project/coffer/owner/appraise/nvgpu/nvgputest"
	"github.com/coffer-project/coffer/proto/kbs"
)

// BenchmarkEightGPUs is what a broker does for the GPUs of one large machine.
func BenchmarkEightGPUs(b *testing.B) {
	signer, err := nvgputest.New()
	if err != nil {
		b.Fatal(err)
	}
	dir := b.TempDir()
	var devices []*nvgputest.Device
	for i := range 8 {
		d, err := signer.Device(kbs.NVIDIAHopper, fmt.Sprintf("GPU-%d", i))
		if err != nil {
			b.Fatal(err)
		}
		if err := d.Manifests(dir); err != nil {
			b.Fatal(err)
		}
		devices = append(devices, d)
	}
	roots, err := nvgpu.ParseRoots(signer.Roots())
	if err != nil {
		b.Fatal(err)
	}
	v, err := nvgpu.New(nvgpu.Options{TestRoots: roots, Collateral: &collateral.Store{Dir: dir}})
	if err != nil {
		b.Fatal(err)
	}
	reportData := bytes.Repeat([]byte{1}, 48)
	raw, err := nvgputest.Evidence(reportData, devices...)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		results, err := v.VerifyDevices(b.Context(), appraise.Evidence{Raw: raw, ReportData: reportData})
		if err != nil || results[7].Status != appraise.Affirming {
			b.Fatalf("got %+v, %v", results, err)
		}
	}
}
