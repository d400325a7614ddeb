// Command containerd-shim-coffer-v2 is containerd's shim of the runtime io.containerd.coffer.v2: it runs a pod's
// containers in a virtual machine that pulls their images itself. containerd starts it; its configuration is the TOML
// file that containerd's runtime options name by ConfigPath.
package main

import (
	"context"

	"github.com/containerd/containerd/v2/pkg/shim"
	ctrdversion "github.com/containerd/containerd/v2/version"

	"github.com/coffer-project/coffer/shim/plugin"
)

// version is set at build time.
var version = "devel"

func main() {
	// The shim library answers -v with the version of the module that it is part of.
	ctrdversion.Version = version
	shim.RunShim(context.Background(), plugin.Manager(version), func(c *shim.Config) {
		// The hypervisor driver waits for its own child. A reaper would take the exit status away from it, and a
		// subreaper would be handed children that are nobody's here.
		c.NoReaper, c.NoSubreaper = true, true
	})
}
