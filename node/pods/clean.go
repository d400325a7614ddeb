package pods

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/coffer-project/coffer/shim/device/vfio"
	"github.com/coffer-project/coffer/shim/netns"
	"github.com/coffer-project/coffer/shim/network"
	"github.com/coffer-project/coffer/shim/sandbox"
	"github.com/coffer-project/coffer/shim/vm/qemu"
)

const (
	// settle is how old a state directory must be to be taken for left over: a shim makes it and takes its lock in two
	// steps.
	settle = 10 * time.Second
	// cleanLimit bounds the release of one pod.
	cleanLimit = 20 * time.Second
)

// hostNetwork takes away what a pod's network held.
type hostNetwork struct{}

func (hostNetwork) Detach(ctx context.Context, path string) error { return network.Detach(ctx, path) }

func (hostNetwork) Remove(path string) error { return netns.Remove(path) }

// Clean releases what an orphan held: its VM, its network, its state directory. It does what containerd has a shim do
// for pods that it still knows, and is for those that it has forgotten.
func Clean(ctx context.Context, p *Pod) error {
	ctx, cancel := context.WithTimeout(ctx, cleanLimit)
	defer cancel()
	return p.clean(ctx, func(ctx context.Context, dir string) error {
		return sandbox.Reap(ctx, new(qemu.Driver), hostNetwork{}, vfio.Host{}, dir)
	})
}

func (p *Pod) clean(ctx context.Context, reap func(context.Context, string) error) error {
	if !p.Orphan {
		return fmt.Errorf("pod %s has a shim: remove it through containerd", p.Name())
	}
	info, err := os.Stat(p.StateDir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("clean up pod %s: %w", p.Name(), err)
	}
	if time.Since(info.ModTime()) < settle {
		return fmt.Errorf("%s changed a moment ago: a pod may just be starting, try again in %s", p.StateDir, settle)
	}
	// Once more, now: the list may be old.
	orphan, err := sandbox.Orphaned(p.StateDir)
	if err != nil {
		return err
	}
	if !orphan {
		return fmt.Errorf("pod %s has a shim again: remove it through containerd", p.Name())
	}
	if err := reap(ctx, p.StateDir); err != nil {
		return fmt.Errorf("clean up pod %s: %w", p.Name(), err)
	}
	return nil
}
