package bundle

import (
	"github.com/coffer-project/coffer/shim/hostfiles"
)

// Files are what a container has of the host's files.
type Files struct {
	// Jobs are copied before the container is created, once.
	Jobs []hostfiles.Job
	// Live are config maps, secrets, projected and downward API volumes: copied before the container is created, and
	// again whenever the kubelet switches their content.
	Live []hostfiles.Volume
	// TerminationLog is the host's file for the container's last message; empty where it has none.
	TerminationLog string

	copied []string
}

// GuestPaths is where the guest will have the container's copies.
func (f *Files) GuestPaths() []string {
	paths := f.copied
	for _, volume := range f.Live {
		paths = append(paths, volume.GuestPath)
	}
	return paths
}
