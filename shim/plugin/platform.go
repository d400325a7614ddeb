package plugin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/sirupsen/logrus"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coffer-project/coffer/shim/agent"
	"github.com/coffer-project/coffer/shim/config"
	"github.com/coffer-project/coffer/shim/device/vfio"
	"github.com/coffer-project/coffer/shim/forward"
	"github.com/coffer-project/coffer/shim/manager"
	"github.com/coffer-project/coffer/shim/netns"
	"github.com/coffer-project/coffer/shim/network"
	"github.com/coffer-project/coffer/shim/plugin/driver"
	"github.com/coffer-project/coffer/shim/sandbox"
	"github.com/coffer-project/coffer/shim/tee"
	"github.com/coffer-project/coffer/shim/vm"
	"github.com/coffer-project/coffer/shim/vm/qemu"
)

// Manager makes the manager of the runtime for the binary's main function. config is the configuration's path for when
// containerd names none; empty means the usual place.
func Manager(version, config string) *manager.Manager {
	return manager.New(RuntimeName, version, config, func(ctx context.Context, stateDir string) error {
		// Ending what an earlier shim left needs none of the driver's options.
		return sandbox.Reap(ctx, new(qemu.Driver), hostNetwork{}, vfio.Host{}, stateDir)
	})
}

func platform() sandbox.Platform {
	return sandbox.Platform{
		LoadConfig: loadConfig, NewDriver: newDriver, Network: hostNetwork{}, Forward: forwardPorts, HostDNS: hostDNS,
		TEE: tee.Machine{},
	}
}

// loadConfig reads the configuration and lets the shim log what it asks for. containerd's own debug switch, which has
// set the level before, can only add to that.
func loadConfig(path string) (*config.Config, error) {
	c, err := config.Load(path)
	if err != nil {
		return nil, err
	}
	wanted, err := logrus.ParseLevel(string(c.LogLevel))
	if err != nil {
		return nil, fmt.Errorf("log_level: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	if logger := log.L.Logger; wanted > logger.GetLevel() || logger.GetLevel() == logrus.InfoLevel {
		logger.SetLevel(wanted)
	}
	return c, nil
}

func newDriver(c *config.Config) (vm.Driver, error) {
	d, err := driver.New(c)
	if err != nil {
		return nil, err
	}
	return d, nil
}

// hostNetwork is package network as the pod wants it.
type hostNetwork struct{}

func (hostNetwork) Attach(ctx context.Context, path string) (*network.Attachment, error) {
	return network.Attach(ctx, path)
}

func (hostNetwork) Release(ctx context.Context, attachment *network.Attachment) error {
	return attachment.Detach(ctx)
}

func (hostNetwork) Make(path string) (sandbox.Namespace, error) { return netns.New(path) }

func (hostNetwork) Remove(path string) error { return netns.Remove(path) }

func (hostNetwork) Detach(ctx context.Context, path string) error { return network.Detach(ctx, path) }

func forwardPorts(ctx context.Context, netns string, dial agent.DialFunc) (io.Closer, error) {
	return forward.Start(ctx, netns, forward.DialFunc(dial))
}

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
