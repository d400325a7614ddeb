package main

import (
	"context"
	"fmt"
	"strings"
)

// gpuPresets are the presets with GPUs for those without.
var gpuPresets = map[string]string{"plain": "gpu", "snp": "gpu-snp", "tdx": "gpu-tdx"}

// passed: a guest gets the GPUs, its driver drives them, and in a TEE they protect what they work on.
func (x *examination) passed(ctx context.Context, preset string) {
	id, claim := preset+"-gpu", "a guest drives GPUs that are passed through to it"
	if preset != "plain" {
		claim += ", in confidential mode"
	}
	if len(x.gpus) == 0 {
		x.add(id, claim, lacking, "none was named (--gpu-node, --gpu-extension, --gpu-verity)")
		return
	}
	more := fmt.Sprintf("guest_extension_images = [{ name = \"gpu\", path = %q, verity_params = %q }]\n[devices]\npod_resource_api_sock = \"\"\n", x.extension, x.verity)
	b, err := boot(ctx, x.text(gpuPresets[preset], more), x.gpus...)
	if err != nil {
		x.add(id, claim, failed, "%v", err)
		return
	}
	words := fields(b.gpus)
	if !strings.Contains(b.gpus, gpusUp) || preset != "plain" && words["confidential"] != "true" {
		x.add(id, claim, failed, "the guest says: %s", b.gpus)
		return
	}
	x.add(id, claim, proved, "after %s; confidential: %s", words["t_gpu"], words["confidential"])
}
