package agent

import (
	"context"

	"github.com/containerd/errdefs"

	agentpb "github.com/coffer-project/coffer/proto/agent"
)

// OOMEvents calls handle with the id of each container that loses a process to the kernel's OOM killer. It returns nil
// when ctx ends or the connection is gone, and an error when the guest refuses or does not offer these events; it
// never tries again, since a guest that answers at once would turn that into a busy loop.
func (c *Client) OOMEvents(ctx context.Context, handle func(containerID string)) error {
	for {
		event, err := c.GetOOMEvent(ctx, &agentpb.GetOOMEventRequest{})
		if err != nil {
			if ctx.Err() != nil || errdefs.IsUnavailable(err) {
				return nil
			}
			return err
		}
		handle(event.GetContainerId())
	}
}
