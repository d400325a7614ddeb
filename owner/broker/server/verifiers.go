package server

import (
	"context"
	"net/http"

	"github.com/containerd/log"

	"github.com/coffer-project/coffer/owner/appraise"
	"github.com/coffer-project/coffer/owner/appraise/collateral"
	"github.com/coffer-project/coffer/owner/appraise/nvgpu"
	"github.com/coffer-project/coffer/owner/appraise/sample"
	"github.com/coffer-project/coffer/owner/appraise/snp"
	"github.com/coffer-project/coffer/owner/appraise/tdx"
	"github.com/coffer-project/coffer/owner/broker/config"
)

// verifiers returns those for all kinds of TEE that the configuration accepts. Hardware is always among them: what is not named by
// references is not trusted anyway.
func verifiers(ctx context.Context, c config.Config, references appraise.References) ([]appraise.Verifier, error) {
	files := collateralStore(c)
	roots, err := c.Evidence.TestRoots()
	if err != nil {
		return nil, err
	}
	if roots != nil {
		log.G(ctx).WithField("roots", c.Evidence.TestRootsFile).
			Warn("TEST MODE: SNP reports are believed that software forged, and those of real processors are refused; never use insecure_snp_test_roots_file where secrets are real")
	}
	snpVerifier, err := snp.New(snp.Options{References: references, Collateral: files, RequireCRL: c.Evidence.RequireCRL, TestRoots: roots})
	if err != nil {
		return nil, err
	}
	tdxVerifier, err := tdx.New(tdx.Options{References: references, Collateral: files, RequireCRL: c.Evidence.RequireCRL})
	if err != nil {
		return nil, err
	}
	list := []appraise.Verifier{snpVerifier, tdxVerifier}
	if c.Attest.AllowSample {
		log.G(ctx).Warn("guests of the sample tee are accepted, which prove nothing")
		list = append(list, sample.New())
	}
	return list, nil
}

// devices returns those for all kinds of devices. As with processors, what is not named by references or by its maker is not trusted anyway.
func devices(ctx context.Context, c config.Config, references appraise.References) ([]appraise.DeviceVerifier, error) {
	roots, err := c.Evidence.GPURoots()
	if err != nil {
		return nil, err
	}
	if roots != nil {
		log.G(ctx).WithField("roots", c.Evidence.GPURootsFile).
			Warn("TEST MODE: evidence of NVIDIA devices is believed that software forged, and that of real ones is refused; never use insecure_nvidia_test_roots_file where secrets are real")
	}
	gpus, err := nvgpu.New(nvgpu.Options{References: references, Collateral: collateralStore(c), RequireOCSP: c.Evidence.RequireOCSP, TestRoots: roots})
	if err != nil {
		return nil, err
	}
	return []appraise.DeviceVerifier{gpus}, nil
}

func collateralStore(c config.Config) *collateral.Store {
	files := &collateral.Store{Dir: c.Evidence.CollateralDir}
	if c.Evidence.FetchCollateral {
		files.Client = &http.Client{}
	}
	return files
}
