package sandbox

import (
	"fmt"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/anypb"
)

// podConfigType is the message that CRI hands over as the options of a sandbox.
const podConfigType = "runtime.v1.PodSandboxConfig"

// maxPodConfigBytes is beyond what an API server accepts for a whole pod.
const maxPodConfigBytes = 4 << 20

// PodConfig is the part of CRI's PodSandboxConfig that a pod is made of. The rest never gets here: the fields are
// picked out of the encoded message one by one, which also spares the shim the memory of CRI's generated code.
type PodConfig struct {
	Name, Namespace, UID string
	Hostname             string
	DNS                  DNS
	Annotations          map[string]string
	Sysctls              map[string]string
	// HostNetwork is set when the pod asks for the node's network, which a VM cannot give it.
	HostNetwork bool
	// SharedPIDs is set when the pod's containers share one process tree.
	SharedPIDs bool
}

// DNS is what goes to the pod's resolv.conf.
type DNS struct {
	Servers, Searches, Options []string
}

// Field numbers of runtime.v1, and the namespace modes that matter.
const (
	podMetadata, podHostname, podDNS, podAnnotations, podLinux = 1, 2, 4, 7, 8
	metaName, metaUID, metaNamespace                           = 1, 2, 3
	dnsServers, dnsSearches, dnsOptions                        = 1, 2, 3
	linuxSecurity, linuxSysctls                                = 2, 3
	securityNamespaces                                         = 1
	namespacesNetwork, namespacesPID                           = 1, 2
	modePod, modeNode                                          = 0, 2
)

// ParsePodConfig takes a PodConfig out of the options of a CreateSandbox request. No options is an empty pod. It fails
// with errdefs.ErrInvalidArgument when the options are of another type, too large or malformed.
func ParsePodConfig(options *anypb.Any) (PodConfig, error) {
	var config PodConfig
	if options == nil || len(options.GetValue()) == 0 && options.GetTypeUrl() == "" {
		return config, nil
	}
	if name := string(options.MessageName()); name != podConfigType {
		return config, fmt.Errorf("sandbox options are a %q, want %s: %w", options.GetTypeUrl(), podConfigType, errdefs.ErrInvalidArgument)
	}
	if size := len(options.GetValue()); size > maxPodConfigBytes {
		return config, fmt.Errorf("pod sandbox config has %d bytes, limit %d: %w", size, maxPodConfigBytes, errdefs.ErrInvalidArgument)
	}
	if err := fields(options.GetValue(), config.field); err != nil {
		return PodConfig{}, fmt.Errorf("decode pod sandbox config: %w", err)
	}
	return config, nil
}

func (c *PodConfig) field(number protowire.Number, value field) error {
	switch number {
	case podMetadata:
		return value.message(func(number protowire.Number, value field) error {
			switch number {
			case metaName:
				c.Name = value.text()
			case metaUID:
				c.UID = value.text()
			case metaNamespace:
				c.Namespace = value.text()
			}
			return nil
		})
	case podHostname:
		c.Hostname = value.text()
	case podDNS:
		return value.message(c.DNS.field)
	case podAnnotations:
		return value.entry(&c.Annotations)
	case podLinux:
		return value.message(c.linux)
	}
	return nil
}

func (d *DNS) field(number protowire.Number, value field) error {
	switch number {
	case dnsServers:
		d.Servers = append(d.Servers, value.text())
	case dnsSearches:
		d.Searches = append(d.Searches, value.text())
	case dnsOptions:
		d.Options = append(d.Options, value.text())
	}
	return nil
}

func (c *PodConfig) linux(number protowire.Number, value field) error {
	switch number {
	case linuxSecurity:
		return value.message(func(number protowire.Number, value field) error {
			if number != securityNamespaces {
				return nil
			}
			// The message is there, so an absent mode is its zero value: POD.
			c.SharedPIDs = true
			return value.message(c.namespaces)
		})
	case linuxSysctls:
		return value.entry(&c.Sysctls)
	}
	return nil
}

func (c *PodConfig) namespaces(number protowire.Number, value field) error {
	switch number {
	case namespacesNetwork:
		c.HostNetwork = value.number == modeNode
	case namespacesPID:
		c.SharedPIDs = value.number == modePod
	}
	return nil
}
