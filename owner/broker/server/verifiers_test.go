package server

import (
	"bytes"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/sirupsen/logrus"

	"github.com/coffer-project/coffer/owner/appraise"
	"github.com/coffer-project/coffer/owner/appraise/nvgpu"
	"github.com/coffer-project/coffer/owner/appraise/nvgpu/nvgputest"
	"github.com/coffer-project/coffer/owner/appraise/snp"
	"github.com/coffer-project/coffer/owner/appraise/snp/snptest"
	"github.com/coffer-project/coffer/owner/broker/config"
	"github.com/coffer-project/coffer/proto/kbs"
)

// A forged report must be believed in the one case where the configuration names its roots, and the log must then say so aloud.
func TestForgedReportsNeedTheirRootsInTheConfiguration(t *testing.T) {
	signer, err := snptest.New("Genoa")
	if err != nil {
		t.Fatal(err)
	}
	measurement := bytes.Repeat([]byte{1}, 48)
	raw, err := signer.Evidence(snptest.Report{ReportData: []byte("x"), Measurement: measurement})
	if err != nil {
		t.Fatal(err)
	}
	references := appraise.Values{
		appraise.RefSNPMeasurement: hex.EncodeToString(measurement),
		appraise.RefSNPBootloader:  float64(signer.TCB.Bootloader), appraise.RefSNPTEE: float64(signer.TCB.TEE),
		appraise.RefSNPFirmware: float64(signer.TCB.SNP), appraise.RefSNPMicrocode: float64(signer.TCB.Microcode),
	}
	roots := filepath.Join(t.TempDir(), "roots.pem")
	if err := os.WriteFile(roots, signer.Roots(), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		roots string
		want  error
	}{"default": {"", errdefs.ErrPermissionDenied}, "test roots": {roots, nil}} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			logger := logrus.New()
			logger.SetOutput(&out)
			ctx := log.WithLogger(t.Context(), logrus.NewEntry(logger))
			c := config.Default()
			c.Evidence.TestRootsFile = tc.roots
			list, err := verifiers(ctx, c, references)
			if err != nil || len(list) != 2 || list[0].TEE() != kbs.TEESNP || list[1].TEE() != kbs.TEETDX {
				t.Fatalf("got %v, %v", list, err)
			}
			result, err := list[0].Verify(ctx, appraise.Evidence{Raw: raw, ReportData: []byte("x")})
			if !errors.Is(err, tc.want) {
				t.Fatalf("got %v", err)
			}
			if warned := strings.Contains(out.String(), "TEST MODE"); warned != (tc.roots != "") {
				t.Errorf("log says %q", out.String())
			}
			if err == nil && (result.Status != appraise.Affirming || result.PolicyID != snp.ForgedPolicyID) {
				t.Errorf("got %+v", result)
			}
		})
	}
	c := config.Default()
	c.Evidence.TestRootsFile = filepath.Join(t.TempDir(), "missing")
	if _, err := verifiers(t.Context(), c, references); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
}

// The same holds for GPUs.
func TestForgedGPUsNeedTheirRootsInTheConfiguration(t *testing.T) {
	signer, err := nvgputest.New()
	if err != nil {
		t.Fatal(err)
	}
	device, err := signer.Device(kbs.NVIDIAHopper, "GPU-0")
	if err != nil {
		t.Fatal(err)
	}
	c := config.Default()
	c.Evidence.CollateralDir = t.TempDir()
	if err := device.Manifests(c.Evidence.CollateralDir); err != nil {
		t.Fatal(err)
	}
	raw, err := nvgputest.Evidence([]byte("x"), device)
	if err != nil {
		t.Fatal(err)
	}
	roots := filepath.Join(t.TempDir(), "roots.pem")
	if err := os.WriteFile(roots, signer.Roots(), 0o600); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]error{"": errdefs.ErrPermissionDenied, roots: nil} {
		var out bytes.Buffer
		logger := logrus.New()
		logger.SetOutput(&out)
		ctx := log.WithLogger(t.Context(), logrus.NewEntry(logger))
		c.Evidence.GPURootsFile = file
		list, err := devices(ctx, c, appraise.Values{})
		if err != nil || len(list) != 1 || list[0].Device() != kbs.DeviceNVIDIA {
			t.Fatalf("got %v, %v", list, err)
		}
		results, err := list[0].VerifyDevices(ctx, appraise.Evidence{Raw: raw, ReportData: []byte("x")})
		if !errors.Is(err, want) || err == nil && (results[0].Status != appraise.Affirming || results[0].PolicyID != nvgpu.ForgedPolicyID) {
			t.Errorf("roots %q: got %+v, %v", file, results, err)
		}
		if warned := strings.Contains(out.String(), "TEST MODE"); warned != (file != "") {
			t.Errorf("log says %q", out.String())
		}
	}
	c.Evidence.GPURootsFile = filepath.Join(t.TempDir(), "missing")
	if _, err := devices(t.Context(), c, appraise.Values{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
}
