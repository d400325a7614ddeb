package config

import (
	"path/filepath"
	"slices"
	"strings"
)

// Devices says which physical devices of the host pods may have. Names that Kata's configuration has, too, mean the same here.
type Devices struct {
	// ColdPlugVFIO is no-port, and no pod gets a device, or root-port.
	ColdPlugVFIO Port `toml:"cold_plug_vfio"`
	// PCIeRootPort is how many devices a pod may have, each behind a root port of its own.
	PCIeRootPort int `toml:"pcie_root_port"`
	// PodResourceAPISock is the kubelet's socket that tells which devices it has allocated to a pod; empty: annotations tell.
	PodResourceAPISock string `toml:"pod_resource_api_sock"`
	// CDISpecDirs are the folders of CDI specifications; what a later one says comes first.
	CDISpecDirs []string `toml:"cdi_spec_dirs"`
	// Bind takes devices that these specifications name from their drivers, and gives them back when the pod ends.
	Bind bool `toml:"bind"`
}

// Port is where devices are plugged in.
type Port string

// Ports.
const (
	PortNone Port = "no-port"
	PortRoot Port = "root-port"
)

// Enabled tells whether pods may have devices at all.
func (d Devices) Enabled() bool { return d.ColdPlugVFIO != PortNone }

// maxRootPorts is how many root ports the machine has room for.
const maxRootPorts = 112

func defaultDevices() Devices {
	return Devices{
		ColdPlugVFIO: PortNone, PCIeRootPort: 32, PodResourceAPISock: "/var/lib/kubelet/pod-resources/kubelet.sock",
		CDISpecDirs: []string{"/etc/cdi", "/var/run/cdi"},
	}
}

func (c *Config) validateDevices(fault faultFunc) {
	d := &c.Devices
	checkEnum(fault, "devices.cold_plug_vfio", d.ColdPlugVFIO, PortNone, PortRoot)
	if d.PCIeRootPort < 1 || d.PCIeRootPort > maxRootPorts {
		fault("devices.pcie_root_port", "%d is not between 1 and %d", d.PCIeRootPort, maxRootPorts)
	}
	paths := slices.Clone(d.CDISpecDirs)
	if d.PodResourceAPISock != "" {
		paths = append(paths, d.PodResourceAPISock)
	}
	for _, path := range paths {
		if !filepath.IsAbs(path) || filepath.Clean(path) != path || strings.ContainsAny(path, "\n\x00") {
			fault("devices", "%q (pod_resource_api_sock, cdi_spec_dirs) is no clean absolute path", path)
		}
	}
}
