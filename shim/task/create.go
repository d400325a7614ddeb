package task

import (
	"context"
	"errors"
	"fmt"
	"time"

	eventsapi "github.com/containerd/containerd/api/events"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	agentpb "github.com/coffer-project/coffer/proto/agent"
	guestpullpb "github.com/coffer-project/coffer/proto/guestpull/v1"
	"github.com/coffer-project/coffer/shim/agent"
	"github.com/coffer-project/coffer/shim/bundle"
	"github.com/coffer-project/coffer/shim/sandbox"
)

// Create makes a container: its image is pulled in the guest, its first process waits for Start. A failed or abandoned
// call leaves nothing behind. It fails with errdefs.ErrAlreadyExists when the id is taken.
func (s *Service) Create(ctx context.Context, r *taskapi.CreateTaskRequest) (_ *taskapi.CreateTaskResponse, retErr error) {
	ctx, end, err := s.begin(ctx, r.GetID())
	if err != nil {
		return nil, err
	}
	defer end()
	ctx = log.WithLogger(ctx, log.G(ctx).WithField("container", r.GetID()))
	if r.GetCheckpoint() != "" {
		return nil, fmt.Errorf("create container %s from a checkpoint: %w", r.GetID(), errdefs.ErrNotImplemented)
	}
	b, err := bundle.Load(ctx, r.GetBundle())
	if err != nil {
		return nil, err
	}
	made, err := s.joinPod(ctx, r, b)
	if err != nil {
		return nil, fmt.Errorf("create container %s: %w", r.GetID(), err)
	}
	c := newContainer(r.GetID(), r.GetBundle(), made)
	defer func() {
		if retErr != nil && made == kindSingle {
			retErr = errors.Join(retErr, s.endPod(ctx))
		}
	}()
	if err := s.createIn(ctx, r, b, c); err != nil {
		if cause := context.Cause(ctx); errors.Is(cause, errAbandoned) {
			err = fmt.Errorf("%w: %w", cause, err)
		}
		log.G(ctx).WithError(err).Error("container not created")
		return nil, fmt.Errorf("create container %s: %w", r.GetID(), err)
	}
	s.add(c)
	s.outbox.post(&eventsapi.TaskCreate{
		ContainerID: c.id, Bundle: c.bundle, Rootfs: r.GetRootfs(), Pid: s.pid(), Checkpoint: r.GetCheckpoint(),
		IO: &eventsapi.TaskIO{Stdin: r.GetStdin(), Stdout: r.GetStdout(), Stderr: r.GetStderr(), Terminal: r.GetTerminal()},
	})
	go s.watchPod(c)
	return &taskapi.CreateTaskResponse{Pid: s.pid()}, nil
}

// createIn makes the container in the guest, unless it only stands for the pod.
func (s *Service) createIn(ctx context.Context, r *taskapi.CreateTaskRequest, b *bundle.Bundle, c *container) (retErr error) {
	streams, err := openStdio(ctx, paths{
		stdin: r.GetStdin(), stdout: r.GetStdout(), stderr: r.GetStderr(), terminal: r.GetTerminal(),
	}, c.id)
	if err != nil {
		return err
	}
	defer func() {
		if retErr != nil {
			streams.close()
			streams.wait()
		}
	}()
	c.init = newProcess(c, "", streams)
	if c.kind == kindSingle {
		if err := s.runCreateHooks(ctx, b, c); err != nil {
			return err
		}
		defer func() {
			if retErr != nil {
				s.runPoststopHooks(ctx, c)
			}
		}()
	}
	switch {
	case c.kind == kindPause:
		return nil
	case c.kind == kindSingle && s.pod.State() == sandbox.StateCreated:
		c.pending = &pending{request: r, bundle: b}
		return s.checkPending(ctx, c.pending)
	}
	return s.join(ctx, r, b, c)
}

// join makes the container in the guest of a running pod.
func (s *Service) join(ctx context.Context, r *taskapi.CreateTaskRequest, b *bundle.Bundle, c *container) error {
	started := time.Now()
	guest, err := s.pod.Guest()
	if err != nil {
		return err
	}
	report, err := s.createInGuest(ctx, guest, r, b, c)
	if err != nil {
		return err
	}
	c.joined(guest)
	s.live.Keep(c.id, c.live)
	s.watchOOM(guest)
	notePull(ctx, report, c, time.Since(started))
	return nil
}

// createInGuest returns what the guest reports of the image pull, nil when it reports nothing.
func (s *Service) createInGuest(
	ctx context.Context, guest *agent.Client, r *taskapi.CreateTaskRequest, b *bundle.Bundle, c *container,
) (_ *guestpullpb.PullReport, retErr error) {
	if b.MapsUsers() {
		// Kata's own agent makes the namespace but leaves the image's files to users who are nobody in it.
		if _, err := guest.BootReport(ctx); errdefs.IsNotImplemented(err) {
			return nil, fmt.Errorf("this guest image offers no user namespaces; use Coffer's, or unset hostUsers: false: %w", err)
		}
	}
	options, err := s.bundleOptions(ctx, r, b)
	if err != nil {
		return nil, err
	}
	defer func() {
		if retErr != nil {
			c.dropVolumes(ctx)
		}
	}()
	if options.Devices, err = s.plugVolumes(ctx, b, c); err != nil {
		return nil, err
	}
	if options.PCIDevices, err = s.pod.PCIDevices(b.CharDevices(), c.kind == kindSingle); err != nil {
		return nil, err
	}
	request, files, err := b.CreateRequest(ctx, options)
	if err != nil {
		return nil, err
	}
	c.files, c.users = files, options.Users
	defer func() {
		if retErr != nil {
			retErr = errors.Join(retErr, s.dropFiles(ctx, guest, c))
		}
	}()
	if err := s.bringFiles(ctx, guest, c); err != nil {
		return nil, s.because(guest, err)
	}
	pull := s.followPull(ctx, guest, request)
	if _, err := guest.CreateContainer(ctx, request); err != nil {
		err = s.because(guest, err)
		pull.end(err, nil)
		// The guest goes on with a call that the host has given up, and a failed one may have left something.
		return nil, errors.Join(err, s.removeFromGuest(ctx, guest, r.GetID()))
	}
	report, err := guest.PullReport(ctx, r.GetID())
	if err != nil && !errdefs.IsNotImplemented(err) {
		log.G(ctx).WithError(err).Warn("guest gave no pull report")
	}
	pull.end(nil, report)
	s.learnUser(ctx, guest, b, c)
	return report, nil
}

// bundleOptions are what a container's request needs beyond its bundle. Clients other than CRI put the image's name into
// containerd's record of the container and nowhere else.
func (s *Service) bundleOptions(ctx context.Context, r *taskapi.CreateTaskRequest, b *bundle.Bundle) (bundle.Options, error) {
	users, err := s.usersOf(ctx, r, b)
	if err != nil {
		return bundle.Options{}, err
	}
	options := bundle.Options{
		ContainerID: r.GetID(), Rootfs: r.GetRootfs(), Hostname: s.pod.Hostname(), SharedPID: b.SharesPID(),
		HooksRun: s.single(b), SharedShm: true, Sysctls: s.pod.Sysctls(), SandboxFiles: s.pod.Files(),
		EmptyDirs: s.emptyDirsOf(), Limits: s.copyLimits(), Users: users, StrictGroups: s.pod.StrictGroups(),
	}
	if b.NamesImage() {
		return options, nil
	}
	options.Image, err = s.records.Image(ctx, r.GetID())
	return options, err
}

// removeFromGuest forgets a container in the guest; one that is not there is fine, and so is a guest that is gone.
func (s *Service) removeFromGuest(ctx context.Context, guest *agent.Client, id string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoBudget)
	defer cancel()
	_, err := guest.RemoveContainer(ctx, &agentpb.RemoveContainerRequest{ContainerId: id})
	if err == nil || errdefs.IsNotFound(err) || errdefs.IsUnavailable(err) {
		return nil
	}
	return fmt.Errorf("remove container %s from the guest: %w", id, err)
}

// maxAltered bounds the names of variables in one line of the log.
const maxAltered = 16

// notePull records how the container came to be; a guest without reports is fine.
func notePull(ctx context.Context, pull *guestpullpb.PullReport, c *container, took time.Duration) {
	c.note(func(report *sandbox.ContainerReport) {
		report.CreateMicros = took.Microseconds()
		if pull != nil {
			report.AddPull(pull)
		}
	})
	if altered := pull.GetProcess().GetEnvAltered(); len(altered) > 0 {
		log.G(ctx).WithField("variables", altered[:min(len(altered), maxAltered)]).
			Warn("variables of the image are changed on this node: by an engine's own --env, or its copy of the image configuration is wrong")
	}
	fetched := int64(0)
	for _, layer := range pull.GetLayers() {
		fetched += layer.GetCompressedBytes()
	}
	log.G(ctx).WithFields(log.Fields{
		"t_create": took, "digest": pull.GetManifestDigest(), "layers": len(pull.GetLayers()), "image_bytes": fetched,
	}).Info("container created")
}

// endPod stops the pod of a task whose creation failed.
func (s *Service) endPod(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoBudget)
	defer cancel()
	return s.pod.Stop(ctx)
}
