package plugin

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coffer-project/coffer/shim/config"
	"github.com/coffer-project/coffer/shim/manager"
	"github.com/coffer-project/coffer/shim/network"
	"github.com/coffer-project/coffer/shim/sandbox"
	"github.com/coffer-project/coffer/shim/vm"
	"github.com/coffer-project/coffer/shim/vm/qemu"
)

// Manager makes the manager of the runtime for the binary's main function.
func Manager(version string) *manager.Manager {
	return manager.New(RuntimeName, version, func(ctx context.Context, stateDir string) error {
		// Ending what an earlier shim left needs none of the driver's options.
		return sandbox.Reap(ctx, new(qemu.Driver), hostNetwork{}, stateDir)
	})
}

func platform() sandbox.Platform {
	return sandbox.Platform{LoadConfig: config.Load, NewDriver: newDriver, Network: hostNetwork{}, HostDNS: hostDNS}
}

func newDriver(c *config.Config) (vm.Driver, error) {
	return qemu.NewDriver(qemu.Options{
		Binary:        c.Hypervisor.Path,
		Accelerator:   qemu.Accelerator(c.Hypervisor.Accelerator),
		CPUModel:      c.Hypervisor.CPUModel,
		Transport:     qemu.Transport(c.Hypervisor.Transport),
		Seccomp:       c.Hypervisor.Seccomp,
		ConsoleLines:  c.Guest.ConsoleLines,
		ShutdownGrace: c.Hypervisor.ShutdownGrace.Duration,
		ProbeTimeout:  c.Hypervisor.ProbeTimeout.Duration,
		CacheDir:      c.StateDir,
	})
}

// hostNetwork is package network as the pod wants it.
type hostNetwork struct{}

func (hostNetwork) Attach(ctx context.Context, netns string) (*network.Attachment, error) {
	return network.Attach(ctx, netns)
}

func (hostNetwork) Release(ctx context.Context, attachment *network.Attachment) error {
	return attachment.Detach(ctx)
}

func (hostNetwork) Detach(ctx context.Context, netns string) error { return network.Detach(ctx, netns) }

const resolvConf = "/etc/resolv.conf"

// hostDNS reads the node's resolver settings, less servers on loopback: those answer on the node and not in the guest.
func hostDNS() (*cri.DNSConfig, error) {
	text, err := os.ReadFile(resolvConf)
	if errors.Is(err, os.ErrNotExist) {
		return new(cri.DNSConfig), nil
	}
	if err != nil {
		return nil, fmt.Errorf("read resolver settings: %w", err)
	}
	dns := sandbox.ParseResolvConf(string(text))
	dns.Servers = slices.DeleteFunc(dns.Servers, func(server string) bool {
		address, err := netip.ParseAddr(server)
		return err == nil && address.IsLoopback()
	})
	return dns, nil
}
