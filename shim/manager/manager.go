package manager

import (
	"context"

	"github.com/containerd/containerd/v2/pkg/shim"
)

// Reap releases what the pod whose state lies in stateDir left behind. It is idempotent and succeeds when nothing is
// there. The plugin package supplies it, because only that knows the hypervisor.
type Reap func(ctx context.Context, stateDir string) error

// Manager answers containerd's calls of the binary.
type Manager struct {
	name    string
	version string
	config  string
	reap    Reap
}

var _ shim.Shim = (*Manager)(nil)

// New makes the manager of the runtime called name, for example io.containerd.coffer.v2. config is the absolute path of
// the runtime configuration for when containerd names none; empty means the usual place.
func New(name, version, config string, reap Reap) *Manager {
	return &Manager{name: name, version: version, config: config, reap: reap}
}

// Name is the runtime's name.
func (m *Manager) Name() string { return m.name }
