package sandbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	cofferevent "github.com/coffer-project/coffer/shim/event"
	"github.com/coffer-project/coffer/shim/vm"
)

// errStopped is the cause of a start that a stop interrupted.
var errStopped = errors.New("the pod was asked to stop")

// quotedLines is how many of the guest's last console lines an error quotes.
const quotedLines = 20

// Stop ends the pod and releases everything it holds, in every state. It is idempotent. It fails when something could
// not be released; another Stop tries that again.
func (p *Pod) Stop(ctx context.Context) error {
	p.mu.Lock()
	if p.interrupt != nil {
		p.interrupt(errStopped)
	}
	p.mu.Unlock()
	unlock, err := p.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if p.State() == StateStopped {
		return nil
	}
	p.setExit(Exit{At: time.Now()})
	ran := p.State() == StateRunning
	if err := p.move(ctx, eventStop); err != nil {
		return err
	}
	if ran {
		p.publishEnd(cofferevent.PodStopped, nil)
	}
	return p.release(ctx)
}

// fail ends a creation or a start that went wrong with cause, and returns the cause, with what the release had to add.
// The operation lock is held.
func (p *Pod) fail(ctx context.Context, cause error) error {
	p.setExit(Exit{At: time.Now(), Status: exitDied, Err: cause})
	log.G(ctx).WithError(cause).WithField("sandbox", p.ID()).Error("pod failed")
	p.publishEnd(cofferevent.PodFailed, cause)
	return errors.Join(cause, p.move(ctx, eventFailed), p.release(ctx))
}

// release unwinds what the pod holds. The operation lock is held and the pod is Stopping.
func (p *Pod) release(ctx context.Context) error {
	started := time.Now()
	err := p.undo.unwind(ctx)
	p.goneOnce.Do(func() { close(p.gone) })
	outcome := eventReleased
	if err != nil {
		outcome = eventFault
		log.G(ctx).WithError(err).WithField("sandbox", p.ID()).Error("pod could not release everything, stop it again")
		err = fmt.Errorf("release pod %s: %w", p.ID(), err)
	} else {
		log.G(ctx).WithField("sandbox", p.ID()).WithField("t_stop", time.Since(started)).Info("pod stopped")
	}
	err = errors.Join(err, p.move(ctx, outcome))
	p.endedOnce.Do(func() { close(p.ended) })
	return err
}

// setExit records how the pod ends; the first one holds.
func (p *Pod) setExit(exit Exit) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.exit.At.IsZero() {
		p.exit = exit
	}
}

// watch ends the pod when its VM ends by itself or the agent's connection is lost. Both mean that nobody can answer for
// the containers any more; a VM that still runs is stopped.
func (p *Pod) watch(instance vm.Instance, lost <-chan struct{}) {
	var cause error
	select {
	case <-p.gone:
		return
	case <-instance.Done():
		cause = exitCause(instance)
	case <-lost:
		select {
		case <-instance.Done():
			cause = exitCause(instance)
		case <-time.After(agentLostGrace):
			cause = errors.New("the connection to the guest's agent broke while its vm ran on")
		}
	}
	ctx := p.life
	unlock, err := p.lock(ctx)
	if err != nil {
		return // the shim ends and stops the pod itself
	}
	defer unlock()
	if p.State() != StateRunning {
		return // a stop caused it, or came first
	}
	cause = withConsole(fmt.Errorf("pod %s died: %w", p.ID(), cause), instance)
	p.setExit(Exit{At: time.Now(), Status: exitDied, Err: cause})
	log.G(ctx).WithError(cause).WithField("sandbox", p.ID()).Error("pod died")
	if err := p.move(ctx, eventDied); err != nil {
		log.G(ctx).WithError(err).Error("pod refused to die")
		return
	}
	p.publishEnd(cofferevent.PodStopped, cause)
	p.goneOnce.Do(func() { close(p.gone) })
	// release logs its own failure; the pod is Invalid then and the next stop tries again.
	_ = p.release(ctx)
}

// agentLostGrace is how long a VM that takes the agent's connection down with it may take to end.
const agentLostGrace = 2 * time.Second

func exitCause(instance vm.Instance) error {
	if err := instance.Exit().Err; err != nil {
		return err
	}
	return errors.New("its vm powered off")
}

// wordyLine is the length from which a console's line that is part of an error was quoted there, and not met by chance.
const wordyLine = 8

// withConsole adds the guest's last words to an error that does not quote them already. The driver leaves out what says
// little, so any line of the console that is quoted counts.
func withConsole(err error, instance vm.Instance) error {
	lines := instance.Console()
	text := err.Error()
	quoted := func(line string) bool { return len(line) >= wordyLine && strings.Contains(text, line) }
	if len(lines) == 0 || slices.ContainsFunc(lines, quoted) {
		return err
	}
	lines = lines[max(0, len(lines)-quotedLines):]
	return fmt.Errorf("%w; last console lines: %s", err, strings.Join(lines, " | "))
}

// withExit adds how the VM ended to an error that came of its end. The connection to the guest breaks a moment before the
// VM's monitor is seen to end, so it waits for that a little.
func withExit(err error, instance vm.Instance) error {
	if errdefs.IsUnavailable(err) && !errors.Is(err, context.DeadlineExceeded) {
		select {
		case <-instance.Done():
		case <-time.After(agentLostGrace):
		}
	}
	select {
	case <-instance.Done():
	default:
		return err
	}
	if cause := exitCause(instance); !strings.Contains(err.Error(), cause.Error()) {
		return fmt.Errorf("%w: %w", cause, err)
	}
	return err
}
