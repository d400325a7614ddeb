package boot

import (
	"context"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/proto/lazyregexp"
)

// ModprobeName is the file name under which the kernel calls the guest's program when a process makes use of something
// that is in a module, such as a kind of network device.
const ModprobeName = "modprobe"

var moduleName = lazyregexp.New(`^[A-Za-z0-9_-]{1,64}$`)

// ModprobeMain loads the module that the kernel asks for by "-q -- NAME", with what it depends on, and returns the exit
// status. Only what the image's list has for this purpose is loaded; to the process that wanted anything else the kernel
// does not have it. Nothing is printed: the kernel would show it to nobody.
func ModprobeMain(ctx context.Context, args []string) int {
	if err := modprobe(ctx, args); err != nil {
		return 1
	}
	return 0
}

func modprobe(ctx context.Context, args []string) error {
	name, err := wantedModule(args)
	if err != nil {
		return err
	}
	list, err := readModules()
	if err != nil {
		return err
	}
	return loadDemanded(ctx, newLoader(list), name)
}

// loadDemanded loads the stage of a module. A module that is in no such stage fails with errdefs.ErrNotFound.
func loadDemanded(ctx context.Context, l *loader, name string) error {
	stage := onDemand + name
	for _, m := range l.list {
		if m.stage == stage {
			return l.load(ctx, stage)
		}
	}
	return fmt.Errorf("kernel module %s: %w", name, errdefs.ErrNotFound)
}

// wantedModule is the last argument as a module's file is named. A kind of network device is asked for by an alias.
func wantedModule(args []string) (string, error) {
	if len(args) == 0 || !moduleName.MatchString(args[len(args)-1]) {
		return "", fmt.Errorf("no module named: %w", errdefs.ErrInvalidArgument)
	}
	name := strings.TrimPrefix(args[len(args)-1], "rtnl-link-")
	return strings.ReplaceAll(name, "-", "_"), nil
}
