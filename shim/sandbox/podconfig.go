package sandbox

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/types/known/anypb"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coffer-project/coffer/shim/bundle"
)

// maxPodConfigBytes is beyond what an API server accepts for a whole pod.
const maxPodConfigBytes = 4 << 20

// ParsePodConfig takes CRI's description of a pod out of the options of a CreateSandbox request; without options it is
// empty. It fails with errdefs.ErrInvalidArgument when the options are of another type, too large or malformed.
func ParsePodConfig(options *anypb.Any) (*cri.PodSandboxConfig, error) {
	config := new(cri.PodSandboxConfig)
	if options.GetTypeUrl() == "" && len(options.GetValue()) == 0 {
		return config, nil
	}
	if size := len(options.GetValue()); size > maxPodConfigBytes {
		return nil, fmt.Errorf("pod sandbox config has %d bytes, limit %d: %w", size, maxPodConfigBytes, errdefs.ErrInvalidArgument)
	}
	if err := options.UnmarshalTo(config); err != nil {
		return nil, fmt.Errorf("decode pod sandbox config: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return config, nil
}

// namespaces is what a pod shares with the node or among its containers; nil-safe.
func namespaces(config *cri.PodSandboxConfig) *cri.NamespaceOption {
	return config.GetLinux().GetSecurityContext().GetNamespaceOptions()
}

// Annotations of containerd's CRI plugin that name the pod where nothing else does.
const (
	annotationPodName      = "io.kubernetes.cri.sandbox-name"
	annotationPodNamespace = "io.kubernetes.cri.sandbox-namespace"
)

// podName is how Kubernetes calls the pod; empty outside it.
func podName(config *cri.PodSandboxConfig) (namespace, name string) {
	if meta := config.GetMetadata(); meta.GetName() != "" {
		return meta.GetNamespace(), meta.GetName()
	}
	return config.GetAnnotations()[annotationPodNamespace], config.GetAnnotations()[annotationPodName]
}

// checkPodConfig refuses what a VM cannot give a pod; handing out something else instead would be a surprise.
func checkPodConfig(config *cri.PodSandboxConfig) error {
	options := namespaces(config)
	for _, namespace := range []struct {
		name string
		mode cri.NamespaceMode
	}{{"network", options.GetNetwork()}, {"process", options.GetPid()}, {"IPC", options.GetIpc()}} {
		if namespace.mode == cri.NamespaceMode_NODE {
			return fmt.Errorf("the pod asks for the node's %s namespace, which a virtual machine cannot give it: %w",
				namespace.name, errdefs.ErrInvalidArgument)
		}
	}
	if err := checkUsers(options.GetUsernsOptions()); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(config.GetLinux().GetSysctls())) {
		if !bundle.PodSysctl(name) {
			return fmt.Errorf("the pod sets the sysctl %.64q, which is no pod's own: %w", name, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// checkUsers accepts a user namespace as the kubelet asks for it (hostUsers: false): one mapping of users and one of
// groups, from 0 in the container. Nil stands for the node's users, which are then the guest's.
func checkUsers(users *cri.UserNamespace) error {
	switch {
	case users == nil, users.GetMode() == cri.NamespaceMode_NODE:
		return nil
	case users.GetMode() != cri.NamespaceMode_POD:
		return fmt.Errorf("the pod asks for a user namespace of mode %s, only POD and NODE are possible: %w", users.GetMode(), errdefs.ErrInvalidArgument)
	}
	for what, list := range map[string][]*cri.IDMapping{"user": users.GetUids(), "group": users.GetGids()} {
		if len(list) != 1 || list[0].GetContainerId() != 0 || list[0].GetHostId() == 0 || list[0].GetLength() == 0 {
			return fmt.Errorf("the pod's user namespace needs one %s mapping, from 0 in the container to others than 0: %w", what, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// openSysctls lets every process of a pod open low ports and ping without privileges, unless the pod says otherwise. For
// pods that containerd describes by a specification it does so by itself, as far as its configuration wants; of pods of the
// Sandbox API it tells only what the kubelet has asked for. Containers of other clients start with the kernel's defaults.
func openSysctls(config *cri.PodSandboxConfig) {
	if config.GetMetadata() == nil {
		return
	}
	all := map[string]string{
		"net.ipv4.ip_unprivileged_port_start": "0",
		"net.ipv4.ping_group_range":           "0 2147483647",
	}
	maps.Copy(all, config.GetLinux().GetSysctls())
	if config.Linux == nil {
		config.Linux = new(cri.LinuxPodSandboxConfig)
	}
	config.Linux.Sysctls = all
}

// sharesPIDs tells whether containers of the pod may ask to see each other's processes. That is CRI's default (its zero
// value is POD), also for a pod that says nothing; the kubelet asks for CONTAINER unless the user wants sharing.
func sharesPIDs(config *cri.PodSandboxConfig) bool {
	return namespaces(config).GetPid() == cri.NamespaceMode_POD
}

// resolvLines are DNS settings as lines of a resolv.conf, which is how the agent protocol wants them.
func resolvLines(dns *cri.DNSConfig) []string {
	var lines []string
	if len(dns.GetSearches()) > 0 {
		lines = append(lines, "search "+strings.Join(dns.GetSearches(), " "))
	}
	for _, server := range dns.GetServers() {
		lines = append(lines, "nameserver "+server)
	}
	if len(dns.GetOptions()) > 0 {
		lines = append(lines, "options "+strings.Join(dns.GetOptions(), " "))
	}
	return lines
}

// ParseResolvConf reads DNS settings from a resolv.conf; what it does not know it leaves out.
func ParseResolvConf(text string) *cri.DNSConfig {
	dns := new(cri.DNSConfig)
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) < 2 {
			continue
		}
		switch words[0] {
		case "nameserver":
			dns.Servers = append(dns.Servers, words[1])
		case "search", "domain":
			dns.Searches = words[1:]
		case "options":
			dns.Options = append(dns.Options, words[1:]...)
		}
	}
	return dns
}
