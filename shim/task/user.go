package task

import (
	"context"
	"fmt"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	guestpullpb "github.com/coffer-project/coffer/proto/guestpull/v1"
	"github.com/coffer-project/coffer/proto/hostroot"
	"github.com/coffer-project/coffer/shim/agent"
	"github.com/coffer-project/coffer/shim/bundle"
	"github.com/coffer-project/coffer/shim/containers"
)

// maxGroups bounds the groups that are taken over from a guest into containerd's record.
const maxGroups = 1024

// usersOf are the names behind the ids of a container's processes. Where its specification leaves open whether a group 0 was
// asked for, containerd's record of what CRI was asked tells. A container runs without that, too.
func (s *Service) usersOf(ctx context.Context, r *taskapi.CreateTaskRequest, b *bundle.Bundle) (bundle.Users, error) {
	users, err := bundle.LoadUsers(r.GetRootfs())
	if err != nil || b.SandboxID() == "" || !users.Unclear(b.User()) {
		return users, err
	}
	asked, err := s.records.AsksForGroup(ctx, r.GetID())
	if err != nil {
		log.G(ctx).WithError(err).Warn("the container gets the group that its image gives its user, also if group 0 was asked for")
	}
	if asked {
		users = users.WithAskedGroup()
	}
	return users, nil
}

// learnUser asks the guest who the container runs as, and makes containerd's record say so: CRI reports it to the kubelet,
// and gives it to execs. A container runs without that, too.
//
// Records that other clients than CRI made stay as they are. Nobody reports their user, and a client may make one task
// after the other from the same record: what containerd looked up there is what the next one needs.
func (s *Service) learnUser(ctx context.Context, guest *agent.Client, b *bundle.Bundle, c *container) {
	if b.SandboxID() == "" {
		return
	}
	told, err := guest.ContainerUser(ctx, c.id)
	if errdefs.IsNotImplemented(err) {
		return
	}
	if err != nil {
		warnOfUser(ctx, err)
		return
	}
	user, err := checkedUser(told)
	if err != nil {
		warnOfUser(ctx, err)
		return
	}
	c.users = c.users.WithFirst(user)
	if !containers.Same(b.User(), user) {
		c.recorded = &user
	}
	s.recordUser(ctx, c)
}

// recordUser corrects containerd's record of a container whose user is not what containerd found on the host. Further
// calls change nothing, unless somebody has overwritten it: CRI's update of resources writes a whole record that it may
// have read before.
func (s *Service) recordUser(ctx context.Context, c *container) {
	if c.recorded == nil {
		return
	}
	if err := s.records.SetUser(ctx, c.id, *c.recorded); err != nil {
		warnOfUser(ctx, err)
	}
}

func warnOfUser(ctx context.Context, err error) {
	log.G(ctx).WithError(err).Warn("containerd keeps the user that it found on the host: the container's status may show ids that only stand for the image's")
}

// checkedUser takes over what a guest says, which is hostile until then.
func checkedUser(told *guestpullpb.ContainerUser) (specs.User, error) {
	if n := len(told.GetAdditionalGids()); n > maxGroups {
		return specs.User{}, fmt.Errorf("guest tells of %d groups, at most %d are taken over: %w", n, maxGroups, errdefs.ErrInvalidArgument)
	}
	for _, id := range append([]uint32{told.GetUid(), told.GetGid()}, told.GetAdditionalGids()...) {
		// Reserved ids stand for names, and no larger ones exist.
		if id >= hostroot.ImageGroups {
			return specs.User{}, fmt.Errorf("guest tells of the id %d, which is not below %d: %w", id, hostroot.ImageGroups, errdefs.ErrInvalidArgument)
		}
	}
	return specs.User{UID: told.GetUid(), GID: told.GetGid(), AdditionalGids: told.GetAdditionalGids()}, nil
}
