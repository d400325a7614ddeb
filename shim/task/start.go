package task

import (
	"context"
	"fmt"
	"time"

	eventsapi "github.com/containerd/containerd/api/events"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	agentpb "github.com/coffer-project/coffer/proto/agent"
	"github.com/coffer-project/coffer/shim/sandbox"
)

// Start runs a created container's first process, or a prepared exec. It fails with errdefs.ErrFailedPrecondition when
// the process was started before.
func (s *Service) Start(ctx context.Context, r *taskapi.StartRequest) (*taskapi.StartResponse, error) {
	p, err := s.process(r.GetID(), r.GetExecID())
	if err != nil {
		return nil, err
	}
	p.op.Lock()
	defer p.op.Unlock()
	if state, _ := p.current(); state != stateCreated {
		return nil, fmt.Errorf("start %s: it is %s: %w", p, state, errdefs.ErrFailedPrecondition)
	}
	if p.container.kind == kindPause {
		return s.startPause(p)
	}
	if err := s.boot(ctx, p); err != nil {
		return nil, fmt.Errorf("start %s: %w", p, err)
	}
	inGuest, err := p.inGuest()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", p, err)
	}
	started := time.Now()
	if err := s.startInGuest(ctx, p); err != nil {
		return nil, fmt.Errorf("start %s: %w", p, err)
	}
	if err := p.move(stateCreated, stateRunning); err != nil {
		return nil, err // killed, or its pod died, in this very moment
	}
	s.postStarted(p)
	go s.attend(p, inGuest)
	if p.execID == "" {
		took := time.Since(started)
		p.container.note(func(report *sandbox.ContainerReport) { report.StartMicros = took.Microseconds() })
		log.G(ctx).WithField("container", r.GetID()).WithField("t_start", took).Info("container started")
	}
	return &taskapi.StartResponse{Pid: s.pid()}, nil
}

func (s *Service) startInGuest(ctx context.Context, p *process) error {
	guest, err := s.pod.Guest()
	if err != nil {
		return err
	}
	if p.execID != "" {
		_, err = guest.ExecProcess(ctx, p.exec)
	} else {
		_, err = guest.StartContainer(ctx, &agentpb.StartContainerRequest{ContainerId: p.container.id})
	}
	if err != nil {
		return s.because(guest, err)
	}
	return nil
}

// startPause marks the task that stands for the pod as running; the VM runs since its creation.
func (s *Service) startPause(p *process) (*taskapi.StartResponse, error) {
	if err := p.move(stateCreated, stateRunning); err != nil {
		return nil, err
	}
	s.postStarted(p)
	return &taskapi.StartResponse{Pid: s.pid()}, nil
}

func (s *Service) postStarted(p *process) {
	if p.execID != "" {
		s.outbox.post(&eventsapi.TaskExecStarted{ContainerID: p.container.id, ExecID: p.execID, Pid: s.pid()})
		return
	}
	s.outbox.post(&eventsapi.TaskStart{ContainerID: p.container.id, Pid: s.pid()})
}
