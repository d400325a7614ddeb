package harness

import (
	"context"
	"fmt"

	"github.com/coffer-project/coffer/integration/forgedsnp"
	"github.com/coffer-project/coffer/proto/initdata"
	"github.com/coffer-project/coffer/proto/kbs"
	"github.com/coffer-project/coffer/shim/config"
	"github.com/coffer-project/coffer/shim/plugin/driver"
	"github.com/coffer-project/coffer/shim/vm"
)

func (n *Node) forgeSNP() error {
	if !n.options.ForgedSNP {
		return nil
	}
	var err error
	n.forged, err = forgedsnp.Start(n.Dir, n.Tools.QEMU)
	return err
}

// tee is the kind of the node's guests.
func (n *Node) tee() string {
	if n.forged != nil {
		return initdata.ForgedSNP
	}
	return string(kbs.TEESample)
}

// believed is what the broker's configuration says of evidence.
func (n *Node) believed() string {
	if n.forged != nil {
		return fmt.Sprintf("[evidence]\ninsecure_snp_test_roots_file = %q\n", n.forged.Roots)
	}
	return "[attestation]\nallow_sample = true\n"
}

// TrustGuest does what an owner does who trusts the node's guest image: measures it, for all ways in which this node may launch it, and has the
// broker trust the measurements. The node must have been started with Options.ForgedSNP.
func (n *Node) TrustGuest(ctx context.Context) error {
	shimConfig, err := config.Load(n.path("shim.toml"))
	if err != nil {
		return err
	}
	for i, accelerator := range []config.Accelerator{config.AcceleratorTCG, config.AcceleratorKVM} {
		shimConfig.Hypervisor.Accelerator = accelerator
		described, err := driver.New(shimConfig)
		if err != nil {
			return err
		}
		line := described.Describe(vm.Config{KernelParams: shimConfig.GuestParams(false)}).KernelLine
		values := n.path(fmt.Sprintf("measured-%s.json", accelerator))
		args := []string{
			"measure", "snp", "--firmware", n.forged.Firmware, "--kernel", n.Tools.Kernel, "--initrd", n.Tools.Initrd,
			"--cmdline", line, "--cpu", forgedsnp.CPU, "--vcpus", "1,2", "--out", values,
		}
		for name, version := range n.forged.Values() {
			args = append(args, "--value", fmt.Sprintf("%s=%d", name, version))
		}
		if err := n.Ctl(ctx, false, args...); err != nil {
			return err
		}
		args = append([]string{"kbs", "reference", "import"}, n.BrokerFlags()...)
		if i > 0 {
			args = append(args, "--add")
		}
		if err := n.Ctl(ctx, true, append(args, values)...); err != nil {
			return err
		}
	}
	return nil
}

// BrokerFlags are those by which cofferctl kbs manages the node's broker.
func (n *Node) BrokerFlags() []string {
	return []string{"--url", n.Broker.URL, "--ca", n.CA.Path, "--admin-key", n.Broker.AdminKey}
}
