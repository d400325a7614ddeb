package bundle

import (
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	ocipb "github.com/coffer-project/coffer/proto/oci"
)

// propagating are the options by which mounts pass from one container to another, see mount_namespaces(7).
var propagating = []string{"shared", "rshared", "slave", "rslave"}

// propagation rebuilds the options of a bind mount that let it pass mounts on, shared, or only get them, slave. That is possible inside
// the pod, in an emptyDir. All else is a copy that one container has for itself, and the host's mounts have no way into the guest.
func (p *planner) propagation(m specs.Mount, isEmptyDir bool) []string {
	var out []string
	for _, option := range m.Options {
		shared := option == "shared" || option == "rshared"
		switch {
		case !slices.Contains(propagating, option):
		case !isEmptyDir:
			p.dropped.note("mounts["+m.Destination+"].options["+option+"]", true)
		case shared && len(p.uids)+len(p.gids) > 0:
			// As the kernel has it: out of a user namespace no mount passes.
			p.dropped.note("mounts["+m.Destination+"].options["+option+"]", true)
			out = append(out, "rslave")
		default:
			out = append(out, option)
		}
	}
	return out
}

// rootPropagation is that of the container's root. containerd makes it shared for a mount that is; only mounts that stayed so need it.
func rootPropagation(asked string, mounts []*ocipb.Mount, d *dropped) string {
	switch asked {
	case "", "private", "rprivate", "slave", "rslave":
		return asked
	case "shared", "rshared":
		for _, m := range mounts {
			if slices.Contains(m.GetOptions(), "shared") || slices.Contains(m.GetOptions(), "rshared") {
				return asked
			}
		}
	}
	d.note("linux.rootfsPropagation", true)
	return ""
}
