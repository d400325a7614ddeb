// Command containerd-shim-coffer-v2 is containerd's shim of the runtime io.containerd.coffer.v2: it runs a pod's
// containers in a virtual machine that pulls their images itself. containerd starts it; its configuration is the TOML
// file that containerd's runtime options name by ConfigPath, else the one in COFFER_SHIM_CONFIG, else /etc/coffer/shim.toml.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/containerd/containerd/v2/pkg/shim"
	ctrdversion "github.com/containerd/containerd/v2/version"

	"github.com/coffer-project/coffer/shim/config"
	"github.com/coffer-project/coffer/shim/plugin"
)

// version is set at build time.
var version = "devel"

func main() {
	// containerd's calls begin with a flag, or with "start" or "delete" alone.
	if len(os.Args) > 1 && os.Args[1] == "config" {
		if err := configCommand(os.Stdout, os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, "containerd-shim-coffer-v2:", err)
			os.Exit(1)
		}
		return
	}
	// The shim library answers -v with the version of the module that it is part of.
	ctrdversion.Version = version
	shim.RunShim(context.Background(), plugin.Manager(version, os.Getenv("COFFER_SHIM_CONFIG")), func(c *shim.Config) {
		// The hypervisor driver waits for its own child. A reaper would take the exit status away from it, and a
		// subreaper would be handed children that are nobody's here.
		c.NoReaper, c.NoSubreaper = true, true
	})
}

// configCommand is for the node's admin: "config default" prints the complete commented default, "config validate FILE"
// reports every fault of a file and its drop-ins.
func configCommand(out io.Writer, args []string) error {
	switch {
	case len(args) == 1 && args[0] == "default":
		return config.WriteDefault(out)
	case len(args) == 2 && args[0] == "validate":
		if _, err := config.Load(args[1]); err != nil {
			return err
		}
		_, err := fmt.Fprintln(out, "the configuration is valid")
		return err
	}
	return errors.New("usage: containerd-shim-coffer-v2 config default | config validate FILE")
}
