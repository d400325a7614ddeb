package qemu

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/coffer-project/coffer/shim/vm"
)

// Stop implements vm.Instance. QEMU is asked to quit; the guest is not asked, because its agent was (DestroySandbox)
// and its disks hold nothing that outlives it.
func (i *Instance) Stop(ctx context.Context) error {
	i.mu.Lock()
	i.stop = true
	state, p, monitor := i.state, i.process, i.monitor
	i.mu.Unlock()
	switch {
	case state == stateEnded:
		return nil
	case state == stateNew:
		i.finish(vm.Exit{At: time.Now(), Requested: true})
		return nil
	case state == stateStarting && p == nil:
		<-i.done // Start sees stop before it forks
		return nil
	}
	if monitor != nil && i.quit(ctx) {
		return nil
	}
	i.mu.Lock()
	i.killed = i.state == stateRunning
	i.mu.Unlock()
	p.kill()
	select {
	case <-i.done:
		return nil
	case <-time.After(killTimeout):
		return fmt.Errorf("stop vm %s: %w: QEMU %d is still there %s after SIGKILL",
			i.config.ID, errdefs.ErrUnavailable, p.pid(), killTimeout)
	}
}

// quit asks QEMU to end and tells whether it did within the grace period.
func (i *Instance) quit(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, i.options.ShutdownGrace)
	defer cancel()
	// An error matters no more than silence: what counts is whether QEMU ends.
	if err := i.monitor.Execute(ctx, "quit", nil, nil); err != nil {
		log.G(ctx).WithError(err).Debug("qemu did not answer to quit")
	}
	select {
	case <-i.done:
		return true
	case <-ctx.Done():
		return false
	}
}
