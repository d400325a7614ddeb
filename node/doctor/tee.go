package doctor

import (
	"bytes"
	"context"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"

	shim "github.com/coffer-project/coffer/shim/config"
	"github.com/coffer-project/coffer/shim/tee"
)

// teeHost is the examined machine as package tee sees it.
type teeHost struct{ x *Examination }

func (h teeHost) ReadFile(path string) ([]byte, error) { return h.x.Host.ReadFile(path) }

func (h teeHost) Stat(path string) error {
	_, err := h.x.Host.Stat(path)
	return err
}

func (h teeHost) SEV() tee.SEV { return h.x.Probes.SEV() }

// checkTEE tells whether the host can be kept out of a guest's memory.
func checkTEE(_ context.Context, x *Examination) []Finding {
	if x.shim.TEE == shim.TEENone {
		return x.checkNoTEE()
	}
	if err := tee.Check(teeHost{x}, x.shim); err != nil {
		return fail(strings.TrimPrefix(oneLine(err), errdefs.ErrFailedPrecondition.Error()+": "), "until then no confidential pod starts here; contrib/hardware-check reports all there is to know")
	}
	name := map[shim.TEE]string{shim.TEESNP: "SEV-SNP", shim.TEETDX: "TDX"}[x.shim.TEE]
	fact := fmt.Sprintf("%s is on, and %s can start its guests", name, x.shim.Hypervisor.Firmware)
	if many := x.capacity(); many != "" {
		fact += ", up to " + many + " guests at a time"
	}
	return ok(fact)
}

// checkNoTEE is about a configuration that uses none, whatever the machine has.
func (x *Examination) checkNoTEE() []Finding {
	const cure = "release keys to this node's guests for development only"
	for _, preset := range []string{"snp", "tdx"} {
		c, err := shim.Preset(preset)
		if err != nil {
			return fail(oneLine(err), cure)
		}
		// Firmware and the like are a matter of a configuration that uses them.
		if tee.CheckMachine(teeHost{x}, c.TEE) == nil {
			return warn(map[string]string{"snp": "SEV-SNP", "tdx": "TDX"}[preset]+" is on, and this configuration does not use it: guests' memory can be read by this host",
				"add a handler whose configuration says preset = \""+preset+"\"; "+cure)
		}
	}
	return warn("neither SEV-SNP nor TDX: guests' memory can be read by this host", cure)
}

// capacity is how many confidential guests the processor has keys for, as control groups count them; empty when they do not.
func (x *Examination) capacity() string {
	raw, err := x.Host.ReadFile("/sys/fs/cgroup/misc.capacity")
	if err != nil {
		return ""
	}
	counted := map[shim.TEE]string{shim.TEESNP: "sev_es", shim.TEETDX: "tdx"}[x.shim.TEE]
	for line := range bytes.Lines(raw) {
		if words := strings.Fields(string(line)); len(words) == 2 && words[0] == counted {
			return words[1]
		}
	}
	return ""
}
