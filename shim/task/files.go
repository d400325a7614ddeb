package task

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/coffer-project/coffer/shim/agent"
	"github.com/coffer-project/coffer/shim/bundle"
	"github.com/coffer-project/coffer/shim/hostfiles"
	"github.com/coffer-project/coffer/shim/hostfiles/live"
	"github.com/coffer-project/coffer/shim/sandbox"
)

// terminationBudget is how long a container's exit may wait for its last message.
const terminationBudget = 5 * time.Second

// copyLimits are what the node's administrator allows.
func (s *Service) copyLimits() hostfiles.Limits {
	volumes := s.pod.Config().Volumes
	return hostfiles.Limits{Bytes: int64(volumes.MaxCopyMiB) << 20, Entries: int(volumes.MaxCopyFiles)}
}

// emptyDirsOf are the volumes in memory that the pod's containers share.
func (s *Service) emptyDirsOf() *bundle.EmptyDirs {
	s.emptyDirsOnce.Do(func() {
		s.emptyDirs.DefaultSize = int64(s.pod.Config().Volumes.EmptyDirMiB) << 20
		s.emptyDirs.OnDisk = s.pod.HasScratch()
	})
	return &s.emptyDirs
}

// bringFiles copies the host's files that a container needs. What a failed call has copied is removed by dropFiles.
func (s *Service) bringFiles(ctx context.Context, guest *agent.Client, c *container) error {
	started := time.Now()
	if err := hostfiles.Copy(ctx, guest, c.files.Jobs); err != nil {
		return err
	}
	for _, volume := range c.files.Live {
		copied, err := live.Copy(ctx, guest, volume, s.copyLimits())
		if err != nil {
			return err
		}
		c.live = append(c.live, copied)
	}
	if len(c.files.Jobs)+len(c.live) > 0 {
		took := time.Since(started)
		c.note(func(report *sandbox.ContainerReport) { report.FilesMicros = took.Microseconds() })
		log.G(ctx).WithField("t_files", took).WithField("files", len(c.files.Jobs)).WithField("volumes", len(c.live)).
			Debug("files of the host copied into the guest")
	}
	return nil
}

// dropFiles removes a container's copies from the guest, or leaves them to the end of the VM where the guest is gone or
// cannot remove them.
func (s *Service) dropFiles(ctx context.Context, guest *agent.Client, c *container) error {
	s.live.Forget(c.id)
	paths := c.files.GuestPaths()
	if len(paths) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoBudget)
	defer cancel()
	err := guest.RemoveFiles(ctx, paths...)
	if err == nil || errdefs.IsNotImplemented(err) || errdefs.IsUnavailable(err) {
		return nil
	}
	return fmt.Errorf("remove files of container %s from the guest: %w", c.id, err)
}

// takeTermination brings the last message of a container that has ended to where the kubelet looks for it. It comes before
// the exit is reported: the kubelet reads the file when it hears of that.
func (s *Service) takeTermination(c *container) {
	if c.files == nil || c.files.TerminationLog == "" {
		return
	}
	ctx, cancel := context.WithTimeout(s.life, terminationBudget)
	defer cancel()
	message := ""
	guest, err := c.inGuest()
	if err == nil {
		message, err = guest.TerminationLog(ctx, c.id)
	}
	if err == nil && message != "" {
		err = hostfiles.WriteTermination(c.files.TerminationLog, message)
	}
	// Not found: the guest keeps no such file for the container.
	if err != nil && !errdefs.IsNotFound(err) && !errors.Is(err, context.Canceled) {
		log.G(s.life).WithError(err).WithField("container", c.id).Warn("container's termination message is lost")
	}
}
