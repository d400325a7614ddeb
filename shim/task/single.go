package task

import (
	"context"
	"errors"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/log"

	"github.com/coffer-project/coffer/shim/bundle"
)

// pending is a created container whose VM boots at its start. Clients without sandboxes that name no network namespace
// put the network into the one that the shim has made, which they find by the task's process id, and so only after the
// task's creation (ctr run --cni). The guest needs its network earlier than a program would: it pulls the image.
type pending struct {
	request *taskapi.CreateTaskRequest
	bundle  *bundle.Bundle
}

// checkPending tells at the creation what is wrong with a container, as far as the host can know: its start makes the
// same request again.
func (s *Service) checkPending(ctx context.Context, made *pending) error {
	options, err := s.bundleOptions(ctx, made.request, made.bundle)
	if err != nil {
		return err
	}
	_, _, err = made.bundle.CreateRequest(ctx, options)
	return err
}

// boot makes a container that has waited for its VM: it starts the pod and creates the container there. When it fails,
// the pod has ended, and its end is reported as the container's. For all other processes it does nothing.
func (s *Service) boot(ctx context.Context, p *process) error {
	made := p.container.waiting()
	if p.execID != "" || made == nil {
		return nil
	}
	ctx = log.WithLogger(ctx, log.G(ctx).WithField("container", p.container.id))
	if err := s.pod.Start(ctx); err != nil {
		return err
	}
	if err := s.join(ctx, made.request, made.bundle, p.container); err != nil {
		log.G(ctx).WithError(err).Error("container not created")
		return errors.Join(err, s.endPod(ctx))
	}
	return nil
}
