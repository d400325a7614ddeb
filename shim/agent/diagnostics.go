package agent

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"

	guestpullpb "github.com/coffer-project/coffer/proto/guestpull/v1"
)

// BootReport asks where the guest's boot spent its time. A guest that does not offer reports, such as a stock Kata
// guest, gives errdefs.ErrNotImplemented, which callers may ignore.
func (c *Client) BootReport(ctx context.Context) (*guestpullpb.BootReport, error) {
	report, err := c.diagnostics.GetBootReport(ctx, &guestpullpb.GetBootReportRequest{})
	// The service is unknown to a stock guest, and ttrpc implementations differ in how they say so.
	if errdefs.IsInvalidArgument(err) || errdefs.IsNotFound(err) {
		return nil, fmt.Errorf("guest offers no boot report: %w: %w", err, errdefs.ErrNotImplemented)
	}
	if err != nil {
		return nil, err
	}
	return report, nil
}

// PullReport asks how the image of a container was pulled: errdefs.ErrNotFound for an unknown container,
// errdefs.ErrNotImplemented when the guest offers no reports.
func (c *Client) PullReport(ctx context.Context, containerID string) (*guestpullpb.PullReport, error) {
	report, err := c.diagnostics.GetPullReport(ctx, &guestpullpb.GetPullReportRequest{ContainerId: containerID})
	if errdefs.IsInvalidArgument(err) {
		return nil, fmt.Errorf("guest offers no pull report: %w: %w", err, errdefs.ErrNotImplemented)
	}
	if err != nil {
		return nil, err
	}
	return report, nil
}

// ContainerUser asks who a container's first process runs as: errdefs.ErrNotFound for an unknown container,
// errdefs.ErrNotImplemented when the guest does not tell.
func (c *Client) ContainerUser(ctx context.Context, containerID string) (*guestpullpb.ContainerUser, error) {
	user, err := c.diagnostics.GetContainerUser(ctx, &guestpullpb.GetContainerUserRequest{ContainerId: containerID})
	if errdefs.IsInvalidArgument(err) {
		return nil, fmt.Errorf("guest does not tell users: %w: %w", err, errdefs.ErrNotImplemented)
	}
	if err != nil {
		return nil, err
	}
	return user, nil
}

// WaitPull waits for news of a container's image pull that are newer than seen, the serial of the answer before. The
// guest answers after a while in any case: errdefs.ErrNotFound when it knows of no pull. errdefs.ErrNotImplemented: it
// offers no progress.
func (c *Client) WaitPull(ctx context.Context, containerID string, seen uint64) (*guestpullpb.PullProgress, error) {
	progress, err := c.progress.WaitPull(ctx, &guestpullpb.WaitPullRequest{ContainerId: containerID, Seen: seen})
	if errdefs.IsInvalidArgument(err) {
		return nil, fmt.Errorf("guest offers no pull progress: %w: %w", err, errdefs.ErrNotImplemented)
	}
	if err != nil {
		return nil, err
	}
	return progress, nil
}
