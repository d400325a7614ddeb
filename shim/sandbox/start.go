package sandbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/coffer-project/coffer/shim/agent"
	"github.com/coffer-project/coffer/shim/device/block"
	"github.com/coffer-project/coffer/shim/network"
	"github.com/coffer-project/coffer/shim/vm"
)

// guestStopBudget bounds what a stop still asks of the guest before its VM is ended anyway.
const guestStopBudget = 5 * time.Second

// Start boots the pod's VM and sets up the guest. It is called once, after Create. When it fails, everything is
// released again and the pod is Stopped; the error quotes the guest's last console lines.
func (p *Pod) Start(ctx context.Context) error {
	unlock, err := p.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if err := p.move(ctx, eventStart); err != nil {
		return err
	}
	started := time.Now()
	bootCtx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	p.setInterrupt(cancel)
	defer p.setInterrupt(nil)
	if err := p.boot(bootCtx); err != nil {
		if cause := context.Cause(bootCtx); errors.Is(cause, errStopped) {
			err = fmt.Errorf("%w: %w", cause, err)
		}
		return p.fail(ctx, fmt.Errorf("start pod %s: %w", p.ID(), err))
	}
	if err := p.move(ctx, eventStarted); err != nil {
		return err
	}
	go p.watch(p.instance, p.guest.Done())
	p.publishStart(time.Since(started))
	log.G(ctx).WithFields(p.report.logFields()).WithField("sandbox", p.ID()).WithField("pid", p.PID()).Info("pod is running")
	return nil
}

func (p *Pod) setInterrupt(cancel context.CancelCauseFunc) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.interrupt = cancel
}

// boot acquires what a running pod holds, in order, each with its undo step. What it leaves behind on failure is
// released by the caller.
func (p *Pod) boot(ctx context.Context) error {
	attachment, err := p.attachNetwork(ctx)
	if err != nil {
		return err
	}
	devices, err := p.claimDevices(ctx)
	if err != nil {
		return err
	}
	instance, err := p.startVM(ctx, attachment, devices)
	if err != nil {
		return err
	}
	if err := p.setUp(ctx, instance, attachment); err != nil {
		return withConsole(withExit(err, instance), instance)
	}
	return nil
}

func (p *Pod) setUp(ctx context.Context, instance vm.Instance, attachment *network.Attachment) error {
	guest, err := p.connect(ctx, instance)
	if err != nil {
		return err
	}
	defer p.phase(phaseSetup)()
	details, err := p.setUpGuest(ctx, guest, attachment)
	if err != nil {
		return err
	}
	p.forwardPorts(ctx, instance, details.GetExtraFeatures())
	return nil
}

// attachNetwork joins the pod's network namespace; a pod without one gets an empty attachment.
func (p *Pod) attachNetwork(ctx context.Context) (*network.Attachment, error) {
	defer p.phase(phaseNetwork)()
	if p.request.NetNS == "" {
		return new(network.Attachment), nil
	}
	attachment, err := p.platform.Network.Attach(ctx, p.request.NetNS)
	if errdefs.IsFailedPrecondition(err) && p.request.OwnNetNS {
		return nil, fmt.Errorf("the container was given no network, and its image is pulled in the guest, which needs one; "+
			"with ctr say --cni, or name a namespace that has one by --with-ns network:PATH: %w", err)
	}
	if err != nil {
		return nil, err
	}
	p.undo.push("detach network", func(ctx context.Context) error { return p.platform.Network.Release(ctx, attachment) })
	return attachment, nil
}

func (p *Pod) startVM(ctx context.Context, attachment *network.Attachment, devices []vm.PCIDevice) (vm.Instance, error) {
	defer p.phase(phaseBoot)()
	driver, err := p.platform.NewDriver(p.config)
	if err != nil {
		return nil, err
	}
	vmConfig, err := p.vmConfig(devices)
	if err != nil {
		return nil, err
	}
	// The instance owns the taps and the disk's file from New on.
	vmConfig.NICs = attachment.NICs()
	instance, err := driver.New(ctx, vmConfig)
	if err != nil {
		return nil, err
	}
	p.undo.steps = append(p.undo.steps, undoStep{name: "stop vm", budget: p.vmStopBudget(), run: func(ctx context.Context) error {
		defer p.goneOnce.Do(func() { close(p.gone) })
		return instance.Stop(ctx)
	}})
	p.mu.Lock()
	p.instance, p.volumes = instance, block.New(instance)
	p.mu.Unlock()
	if err := instance.Start(ctx); err != nil {
		return nil, withConsole(fmt.Errorf("boot vm: %w", err), instance)
	}
	return instance, nil
}

// vmStopBudget leaves the driver time to use force after its own grace period.
func (p *Pod) vmStopBudget() time.Duration {
	return p.config.Hypervisor.ShutdownGrace.Duration + stepBudget
}

// connect waits for the agent until the boot deadline.
func (p *Pod) connect(ctx context.Context, instance vm.Instance) (*agent.Client, error) {
	defer p.phase(phaseAgent)()
	guest, err := agent.Connect(ctx, instance.Dial, agent.Options{
		ConnectTimeout: p.config.Guest.BootTimeout.Duration,
		CallTimeout:    p.config.Guest.RequestTimeout.Duration,
		CreateTimeout:  p.config.Image.CreateContainerTimeout.Duration,
	})
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		// The class comes first, and so it is what the caller sees: its own deadline has not passed.
		return nil, fmt.Errorf("%w: the guest's agent did not answer within guest.boot_timeout of %s: %w",
			errdefs.ErrUnavailable, p.config.Guest.BootTimeout, err)
	}
	if err != nil {
		return nil, fmt.Errorf("connect to the guest's agent: %w", err)
	}
	p.undo.push("close connection to guest", func(context.Context) error {
		// Its VM is ended next, so a connection that is already broken is no fault.
		_ = guest.Close()
		return nil
	})
	p.mu.Lock()
	p.guest = guest
	p.mu.Unlock()
	return guest, nil
}
