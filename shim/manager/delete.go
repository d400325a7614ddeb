package manager

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/pkg/shim"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coffer-project/coffer/shim/hooks"
)

// reapBudget keeps below the 5 s after which containerd kills the delete process.
const reapBudget = 4 * time.Second

// exitKilled is what a container reports whose shim died under it: killed by SIGKILL.
const exitKilled = 128 + int(syscall.SIGKILL)

// Stop is the `delete` call: it releases what the shim of a bundle left behind and reports the exit of a container
// whose shim can no longer tell. containerd calls it after every shim and every container, so it is idempotent, and it
// touches nothing when the bundle is that of a container in somebody else's pod.
func (m *Manager) Stop(ctx context.Context, id string) (shim.StopStatus, error) {
	status := shim.StopStatus{ExitStatus: exitKilled, ExitedAt: time.Now()}
	bundle := bundleOf(ctx)
	record, err := ReadRecord(bundle)
	if errdefs.IsNotFound(err) {
		return status, nil
	}
	if err != nil {
		return status, err
	}
	ctx, cancel := context.WithTimeout(ctx, reapBudget)
	defer cancel()
	if err := dismiss(ctx, record.Address, id); err != nil {
		// What it holds is released by force below; without a pod it ends by itself.
		log.G(ctx).WithError(err).WithField("sandbox", id).Warn("shim did not end when it was asked to")
	}
	var faults []error
	if record.StateDir != "" {
		if err := m.reap(ctx, record.StateDir); err != nil {
			faults = append(faults, fmt.Errorf("clean up pod %s: %w", id, err))
		}
	}
	if record.Hooks {
		faults = append(faults, runHooks(ctx, bundle, id, record))
	}
	// containerd is done with this shim, also when it still answers.
	faults = append(faults, RemoveSocket(record.Address))
	if err := errors.Join(faults...); err != nil {
		log.G(ctx).WithError(err).WithField("sandbox", id).Error("pod left something behind")
		return status, err
	}
	return status, nil
}

// runHooks runs the hooks that a killed shim could not run any more, once.
func runHooks(ctx context.Context, bundle, id string, record *Record) error {
	var spec specs.Spec
	if err := readJSON(filepath.Join(bundle, "config.json"), &spec); err != nil {
		return err
	}
	record.Hooks = false
	err := hooks.Poststop(ctx, spec.Hooks, specs.State{Version: specs.Version, ID: id, Status: specs.StateStopped, Bundle: bundle, Annotations: spec.Annotations})
	return errors.Join(err, record.Write(bundle))
}

// bundleOf is the -bundle flag that containerd gives to `delete`, or the current directory.
func bundleOf(ctx context.Context) string {
	if opts, ok := ctx.Value(shim.OptsKey{}).(shim.Opts); ok && opts.BundlePath != "" {
		return opts.BundlePath
	}
	dir, err := os.Getwd()
	if err != nil {
		return "."
	}
	return dir
}
