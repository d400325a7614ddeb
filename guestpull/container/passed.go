package container

import (
	"context"
	"fmt"
	"maps"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coffer-project/coffer/guestpull/gpu/cdi"
	agentpb "github.com/coffer-project/coffer/proto/agent"
	"github.com/coffer-project/coffer/proto/agentpolicy"
)

// planPassed reads which passed-through devices the annotations name. A sandbox container has none, whatever it says: no program of the
// pod runs in it.
func (p *plan) planPassed(req *agentpb.CreateContainerRequest) (err error) {
	if p.sandbox {
		return nil
	}
	if p.passed, err = cdi.Requested(req.GetOCI().GetAnnotations()); err != nil {
		return fmt.Errorf("container %s: %w", p.id, err)
	}
	return nil
}

// addPassed gives the container its passed-through devices, and notes for the policy what they bring along.
func (m *Manager) addPassed(ctx context.Context, p *plan) error {
	if len(p.passed) == 0 {
		return nil
	}
	before := summarise(p.spec)
	if err := m.CDI.Inject(ctx, p.spec, p.passed); err != nil {
		return fmt.Errorf("container %s: %w", p.id, err)
	}
	for i := range p.spec.Mounts {
		if mnt := &p.spec.Mounts[i]; !before.mounts[mountKey(*mnt)] {
			mnt.Type = ownMount
		}
	}
	after := summarise(p.spec)
	p.brought = &agentpolicy.CDI{
		Devices: p.passed,
		Env:     without(after.env, before.env), Mounts: without(after.mounts, before.mounts),
		Nodes: without(after.nodes, before.nodes), Hooks: without(after.hooks, before.hooks),
	}
	return nil
}

// ownMount is the type of mounts that the guest's own specifications ask for. The options say that they bind; by the type they differ from
// those that the host asks for, whose sources are pinned.
const ownMount = "none"

func mountKey(m specs.Mount) string { return m.Source + ":" + m.Destination }

// summary is what a specification has of what devices can bring.
type summary struct{ env, mounts, nodes, hooks map[string]bool }

func summarise(s *specs.Spec) summary {
	out := summary{map[string]bool{}, map[string]bool{}, map[string]bool{}, map[string]bool{}}
	for _, env := range s.Process.Env {
		out.env[env] = true
	}
	for _, m := range s.Mounts {
		out.mounts[mountKey(m)] = true
	}
	for _, d := range s.Linux.Devices {
		out.nodes[d.Path] = true
	}
	if s.Hooks != nil {
		for _, h := range s.Hooks.CreateContainer { // the only ones, see package cdi
			out.hooks[h.Path] = true
		}
	}
	return out
}

func without(all, known map[string]bool) []string {
	out := []string{}
	for _, one := range slices.Sorted(maps.Keys(all)) {
		if !known[one] {
			out = append(out, one)
		}
	}
	return out
}
