package doctor

import (
	"context"
	"fmt"
	"strings"

	shim "github.com/coffer-project/coffer/shim/config"
	snapshotter "github.com/coffer-project/coffer/snapshotter/config"
)

// checkShimConfig reads the runtime handler's configuration; the checks after it go on with the defaults when that fails.
func checkShimConfig(_ context.Context, x *Examination) []Finding {
	path := x.Paths.Shim
	config, err := shim.Load(path)
	if path == "" {
		path = shim.DefaultPath
	}
	if err != nil {
		x.shim = shim.Default()
		return fail(oneLine(err), "correct "+path+"; `cofferctl config default shim` prints every key, `cofferctl config validate shim FILE` checks a file")
	}
	x.shim = config
	if _, err := x.Host.Stat(path); err != nil {
		return ok("no " + path + ": the defaults hold")
	}
	return ok(path + " is valid")
}

func checkSnapshotterConfig(_ context.Context, x *Examination) []Finding {
	path := x.Paths.Snapshotter
	config, err := snapshotter.Load(path)
	if path == "" {
		path = snapshotter.DefaultPath
	}
	if err != nil {
		x.snapshotter = snapshotter.Default()
		return fail(oneLine(err), "correct "+path+"; `cofferctl config default snapshotter` prints every key, `cofferctl config validate snapshotter FILE` checks a file")
	}
	x.snapshotter = config
	if _, err := x.Host.Stat(path); err != nil {
		return ok("no " + path + ": the defaults hold")
	}
	return ok(path + " is valid")
}

// oneLine is an error in one line, as a table needs it.
func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

func plural(n int, what string) string {
	if n == 1 {
		return fmt.Sprintf("1 %s", what)
	}
	return fmt.Sprintf("%d %ss", n, what)
}
