package spec

import (
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// The propagation of mounts, see mount_namespaces(7).
const (
	// PropagationPrivate keeps mounts to the container that makes them. All others do not see them.
	PropagationPrivate = "rprivate"
	// PropagationSlave lets the container see the mounts of others.
	PropagationSlave = "rslave"
	// PropagationShared lets it show its own as well.
	PropagationShared = "rshared"
)

// propagations are the options, and what they become: with a part of the mounts below another they would mean a mixture.
var propagations = map[string]string{
	"private": PropagationPrivate, "rprivate": PropagationPrivate, "unbindable": PropagationPrivate, "runbindable": PropagationPrivate,
	"slave": PropagationSlave, "rslave": PropagationSlave,
	"shared": PropagationShared, "rshared": PropagationShared,
}

// mounter is the capability without which nobody mounts anything.
const mounter = "CAP_SYS_ADMIN"

// PropagationOf returns the propagation that options ask for; the last one counts, and without one it is PropagationPrivate.
func PropagationOf(options []string) string {
	for _, option := range slices.Backward(options) {
		if kind, ok := propagations[option]; ok {
			return kind
		}
	}
	return PropagationPrivate
}

// settlePropagation gives options exactly one propagation. Left to the runtime it would depend on the mount that is cloned.
func settlePropagation(options []string) []string {
	kind := PropagationOf(options)
	out := slices.DeleteFunc(slices.Clone(options), func(option string) bool { return propagations[option] != "" })
	return append(out, kind)
}

// rootPropagation is that of the container's root, which bounds what its mounts can have. Shared is granted with a shared mount alone.
func rootPropagation(asked string, mounts []specs.Mount, o Options, process *specs.Process) (string, error) {
	shared, slave := false, false
	for _, m := range mounts {
		if m.Type != Bind {
			continue
		}
		switch PropagationOf(m.Options) {
		case PropagationShared:
			if !o.shareable(m.Source) {
				return "", refuse("mount at %s: mounts in %.200q cannot be shared with other containers", m.Destination, m.Source)
			}
			shared = true
		case PropagationSlave:
			slave = true
		}
	}
	switch {
	case shared && o.Users.Mapped():
		return "", refuse("container %s shares mounts with others out of a user namespace", o.ContainerID)
	case shared && (process.Capabilities == nil || !slices.Contains(process.Capabilities.Bounding, mounter)):
		return "", refuse("container %s shares mounts with others but lacks %s: only a privileged container may", o.ContainerID, mounter)
	case shared:
		return PropagationShared, nil
	case asked != "" && propagations[asked] == PropagationPrivate && slave:
		return PropagationSlave, nil
	case asked == "" || propagations[asked] == PropagationPrivate || propagations[asked] == PropagationSlave:
		return asked, nil
	}
	return "", refuse("root propagation %.32q of container %s", asked, o.ContainerID)
}
