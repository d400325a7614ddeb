package manager

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/containerd/api/types"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/containerd/v2/pkg/shim"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-spec/specs-go/features"
	"google.golang.org/protobuf/types/known/anypb"
)

// featuresURL is the type under which containerd looks for an OCI runtime's features. It is registered by a package
// of containerd's daemon that a shim has no other need of.
const featuresURL = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"

// Info tells containerd what the runtime can do.
func (m *Manager) Info(_ context.Context, options io.Reader) (*types.RuntimeInfo, error) {
	info := &types.RuntimeInfo{
		Name:    m.name,
		Version: &types.RuntimeVersion{Version: m.version},
	}
	opts, err := shim.ReadRuntimeOptions[*runtimeoptions.Options](options)
	if err != nil && !errors.Is(err, errdefs.ErrNotFound) {
		return nil, fmt.Errorf("read runtime options: %w", err)
	}
	if opts != nil {
		if info.Options, err = anypb.New(opts); err != nil {
			return nil, fmt.Errorf("encode runtime options: %w", err)
		}
	}
	raw, err := json.Marshal(runtimeFeatures())
	if err != nil {
		return nil, fmt.Errorf("encode runtime features: %w", err)
	}
	info.Features = &anypb.Any{TypeUrl: featuresURL, Value: raw}
	return info, nil
}

// runtimeFeatures is what a container in the guest can ask for. What is not named here, CRI does not offer to pods. User
// namespaces need "user" and idmapped mounts, recursive read-only mounts "rro".
func runtimeFeatures() *features.Features {
	yes, no := true, false
	return &features.Features{
		OCIVersionMin: "1.0.0",
		OCIVersionMax: specs.Version,
		MountOptions: []string{
			"bind", "rbind", "ro", "rro", "rw", "nosuid", "suid", "nodev", "dev", "noexec", "exec", "private", "rprivate",
			"noatime", "relatime", "strictatime", "nodiratime", "sync", "async", "remount",
		},
		Linux: &features.Linux{
			Namespaces:      []string{"cgroup", "ipc", "mount", "network", "pid", "user", "uts"},
			Cgroup:          &features.Cgroup{V1: &no, V2: &yes, Systemd: &no, SystemdUser: &no, Rdma: &no},
			Seccomp:         &features.Seccomp{Enabled: &yes},
			Apparmor:        &features.Apparmor{Enabled: &no},
			Selinux:         &features.Selinux{Enabled: &no},
			IntelRdt:        &features.IntelRdt{Enabled: &no},
			MountExtensions: &features.MountExtensions{IDMap: &features.IDMap{Enabled: &yes}},
		},
	}
}
