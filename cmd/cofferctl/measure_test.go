package main

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/owner/appraise"
)

const measureData = "../../proto/ovmf/ovmftest/"

// What the command writes is what brokers read, and its digests are the published ones.
func TestMeasureSNP(t *testing.T) {
	for name, form := range map[string][]string{"plain": nil, "rvps": {"--rvps"}} {
		t.Run(name, func(t *testing.T) {
			out := filepath.Join(t.TempDir(), "values.json")
			args := append([]string{
				"measure", "snp", "--firmware", measureData + "ovmf_AmdSev_suffix.bin", "--kernel", os.DevNull, "--initrd", os.DevNull,
				"--cpu", "EPYC-v4,EPYC-Genoa", "--vcpus", "1,4", "--value", "snp_bootloader=10", "--value", "snp_bootloader=11",
				"--value", "snp_smt_allowed=true", "--out", out,
			}, form...)
			text, err := runCommand(t, "", measureCommand(), args...)
			if err != nil {
				t.Fatal(err)
			}
			raw, err := os.ReadFile(out)
			if err != nil {
				t.Fatal(err)
			}
			values, err := appraise.ParseValues(raw)
			if err != nil {
				t.Fatal(err)
			}
			digests, _ := values[appraise.RefSNPMeasurement].([]any)
			for _, want := range []string{
				"ddc5224521617a536ee7ce9dd6224d1b58a8d4fda1c741f3ac99fc4bfa04ba6e9fc98646d4a07a9079397fa3852819b5",
				"5061fffb019493a903613d56d54b94912a1a2f9e4502385f5c194616753720a92441310ba6c4933de877c36e23046ad5",
			} {
				if len(digests) != 4 || !slices.Contains(digests, any(want)) || !strings.Contains(text, want) {
					t.Errorf("%s is missing in\n%s\n%v", want, text, digests)
				}
			}
			for name, got := range map[string]any{appraise.RefSNPBootloader: uint8(11), appraise.RefSNPSMTAllowed: true} {
				if trusted, _, err := appraise.Trusts(t.Context(), values, name, got); err != nil || !trusted {
					t.Errorf("%s: %v, %v", name, values[name], err)
				}
			}
		})
	}
}

func TestMeasureFaults(t *testing.T) {
	firmware := measureData + "ovmf_OvmfX64_suffix.bin"
	for name, tc := range map[string]struct {
		args []string
		want error
	}{
		"unknown processor": {[]string{"snp", "--firmware", firmware, "--cpu", "host"}, errdefs.ErrInvalidArgument},
		"no kernel hashes":  {[]string{"snp", "--firmware", firmware, "--cpu", "EPYC", "--kernel", os.DevNull}, errdefs.ErrInvalidArgument},
		"no firmware":       {[]string{"snp", "--firmware", "/nonexistent", "--cpu", "EPYC"}, os.ErrNotExist},
		"bad value":         {[]string{"snp", "--firmware", firmware, "--cpu", "EPYC", "--value", "x"}, errdefs.ErrInvalidArgument},
		"two kernels":       {[]string{"snp", "--firmware", firmware, "--cpu", "EPYC", "--guest", "g", "--kernel", "k"}, errdefs.ErrInvalidArgument},
		"argument":          {[]string{"snp", "--firmware", firmware, "--cpu", "EPYC", "more"}, errdefs.ErrInvalidArgument},
		"not TDX firmware":  {[]string{"tdx", "--firmware", os.DevNull}, errdefs.ErrInvalidArgument},
		"no guest image":    {[]string{"snp", "--firmware", firmware, "--cpu", "EPYC", "--guest", "/nonexistent"}, errdefs.ErrNotFound},
	} {
		if text, err := runCommand(t, "", measureCommand(), append([]string{"measure"}, tc.args...)...); !errors.Is(err, tc.want) {
			t.Errorf("%s: got %v\n%s", name, err, text)
		}
	}
}
