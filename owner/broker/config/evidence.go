package config

import (
	"errors"
	"fmt"
	"os"

	"github.com/coffer-project/coffer/owner/appraise/nvgpu"
	"github.com/coffer-project/coffer/owner/appraise/snp"
)

// Evidence says what evidence of hardware is held against.
type Evidence struct {
	CollateralDir   string `toml:"collateral_dir" comment:"certificates, revocation lists and TCB tables of the processors' makers, in a tree shaped like their addresses"`
	FetchCollateral bool   `toml:"fetch_collateral" comment:"ask the makers over the network for what is not in collateral_dir or is older than a day, and keep it there"`
	RequireCRL      bool   `toml:"require_crl" comment:"refuse evidence unless current revocation lists are there"`
	RequireOCSP     bool   `toml:"require_ocsp" comment:"refuse evidence of NVIDIA devices unless NVIDIA's current answers on their certificates are in collateral_dir"`
	TestRootsFile   string `toml:"insecure_snp_test_roots_file" comment:"FOR TESTS ONLY: believe SNP reports forged under these roots (PEM) instead of those of real processors"`
	GPURootsFile    string `toml:"insecure_nvidia_test_roots_file" comment:"FOR TESTS ONLY: believe evidence of NVIDIA devices forged under these roots (PEM) instead of that of real ones"`
}

func (e Evidence) faults() []error {
	if e.FetchCollateral && e.CollateralDir == "" {
		return []error{errors.New("evidence.fetch_collateral needs evidence.collateral_dir: asking the makers for every guest is too slow for both sides")}
	}
	return nil
}

// TestRoots reads the roots of a forged signer, or returns nil where none are configured, as must be the case outside tests.
func (e Evidence) TestRoots() (snp.Roots, error) {
	if e.TestRootsFile == "" {
		return nil, nil
	}
	raw, err := os.ReadFile(e.TestRootsFile)
	if err != nil {
		return nil, fmt.Errorf("read test roots: %w", err)
	}
	roots, err := snp.ParseRoots(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", e.TestRootsFile, err)
	}
	return roots, nil
}

// GPURoots is TestRoots for NVIDIA's devices.
func (e Evidence) GPURoots() (*nvgpu.Roots, error) {
	if e.GPURootsFile == "" {
		return nil, nil
	}
	raw, err := os.ReadFile(e.GPURootsFile)
	if err != nil {
		return nil, fmt.Errorf("read test roots: %w", err)
	}
	roots, err := nvgpu.ParseRoots(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", e.GPURootsFile, err)
	}
	return roots, nil
}
