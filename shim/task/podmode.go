package task

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coffer-project/coffer/shim/bundle"
	"github.com/coffer-project/coffer/shim/sandbox"
)

// maxPodFileBytes bounds what is read here of a bundle and of a resolv.conf.
const maxPodFileBytes = 16 << 20

// joinPod makes sure that a container has a running pod, and tells what the container is to it. The pod of the sandbox
// API runs already; the pause container of podsandbox mode and a container that names no pod make theirs here.
func (s *Service) joinPod(ctx context.Context, r *taskapi.CreateTaskRequest, b *bundle.Bundle) (kind, error) {
	s.making.Lock()
	defer s.making.Unlock()
	if s.pod.State() != sandbox.StateNew {
		if want := b.SandboxID(); want != "" && want != s.pod.ID() {
			return 0, fmt.Errorf("container %s belongs to pod %s, this shim serves pod %s: %w",
				r.GetID(), want, s.pod.ID(), errdefs.ErrInvalidArgument)
		}
		_, err := s.pod.Guest()
		return kindMember, err
	}
	made := kindSingle
	if b.IsSandbox() {
		made = kindPause
	} else if want := b.SandboxID(); want != "" && want != r.GetID() {
		return 0, fmt.Errorf("container %s belongs to pod %s, which this shim does not serve: %w",
			r.GetID(), want, errdefs.ErrFailedPrecondition)
	}
	return made, s.makePod(ctx, r, b, made)
}

// makePod creates and boots the pod of a task.
func (s *Service) makePod(ctx context.Context, r *taskapi.CreateTaskRequest, b *bundle.Bundle, made kind) error {
	if b.HostNetwork() {
		return fmt.Errorf("the container asks for the host's network (ctr run --net-host), which a virtual machine cannot give it: %w",
			errdefs.ErrInvalidArgument)
	}
	config, err := podConfigOf(b, made)
	if err != nil {
		return err
	}
	namespace, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.ownsPod = true
	s.mu.Unlock()
	own := made == kindSingle && b.NetNS() == ""
	err = s.pod.Create(ctx, sandbox.Request{
		ID: r.GetID(), Namespace: namespace, Bundle: r.GetBundle(), NetNS: b.NetNS(), OwnNetNS: own, ConfigPath: s.configPath,
		Config: config, Placed: s.placed, DeviceNodes: b.CharDevices(),
	})
	if err != nil || own {
		return err
	}
	return s.pod.Start(ctx)
}

// podConfigOf describes the pod that a container's specification implies, in CRI's words.
func podConfigOf(b *bundle.Bundle, made kind) (*cri.PodSandboxConfig, error) {
	config := &cri.PodSandboxConfig{Annotations: b.Annotations()}
	var spec struct {
		Hostname string        `json:"hostname"`
		Mounts   []specs.Mount `json:"mounts"`
		Linux    struct {
			Resources *specs.LinuxResources `json:"resources"`
			Sysctl    map[string]string     `json:"sysctl"`
		} `json:"linux"`
	}
	raw, err := readBounded(filepath.Join(b.Path(), "config.json"))
	if err != nil {
		return nil, fmt.Errorf("read specification: %w", err)
	}
	if err := json.Unmarshal(raw, &spec); err != nil {
		return nil, fmt.Errorf("decode specification: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	config.Hostname = spec.Hostname
	pid := cri.NamespaceMode_CONTAINER
	if made == kindPause {
		// The pause container's specification does not tell whether the pod's containers will share their processes,
		// so the guest is prepared for it.
		pid = cri.NamespaceMode_POD
	}
	config.Linux = &cri.LinuxPodSandboxConfig{
		SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: &cri.NamespaceOption{Pid: pid}},
		Sysctls:         spec.Linux.Sysctl,
	}
	if made == kindPause {
		config.Linux.Resources, err = podResources(b.Annotations())
		if err != nil {
			return nil, err
		}
	} else if limits := spec.Linux.Resources; limits != nil {
		config.Linux.Resources = containerResources(limits)
	}
	for _, mount := range spec.Mounts {
		if mount.Destination != "/etc/resolv.conf" {
			continue
		}
		text, err := readBounded(mount.Source)
		if err != nil {
			return nil, fmt.Errorf("read the pod's resolv.conf: %w", err)
		}
		config.DnsConfig = sandbox.ParseResolvConf(string(text))
	}
	return config, nil
}

func readBounded(path string) ([]byte, error) {
	file, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", path, errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	defer file.Close()
	raw, err := io.ReadAll(io.LimitReader(file, maxPodFileBytes+1))
	if err != nil {
		return nil, err
	}
	if len(raw) > maxPodFileBytes {
		return nil, fmt.Errorf("%s is larger than %d bytes: %w", path, maxPodFileBytes, errdefs.ErrInvalidArgument)
	}
	return raw, nil
}
