package agent

import (
	"context"
	"fmt"
	"slices"

	"github.com/containerd/errdefs"

	agentpb "github.com/coffer-project/coffer/proto/agent"
	guestpullpb "github.com/coffer-project/coffer/proto/guestpull/v1"
)

// terminationLog is the only kind of diagnostic data.
const terminationLog = "termination_log"

// removeBatch is how many paths a guest takes in one request.
const removeBatch = 256

// RemoveFiles removes what CopyFile has made, whole folders too; what is not there is no error. A guest that does not
// offer it, such as a stock Kata guest, gives errdefs.ErrNotImplemented.
func (c *Client) RemoveFiles(ctx context.Context, paths ...string) error {
	for batch := range slices.Chunk(paths, removeBatch) {
		_, err := c.files.RemoveFiles(ctx, &guestpullpb.RemoveFilesRequest{Paths: batch})
		// The service is unknown to a stock guest, and ttrpc implementations differ in how they say so.
		if errdefs.IsInvalidArgument(err) || errdefs.IsNotFound(err) {
			return fmt.Errorf("guest cannot remove copied files: %w: %w", err, errdefs.ErrNotImplemented)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// TerminationLog asks for a container's last message: errdefs.ErrNotFound when it has left none.
func (c *Client) TerminationLog(ctx context.Context, containerID string) (string, error) {
	answer, err := c.GetDiagnosticData(ctx, &agentpb.GetDiagnosticDataRequest{LogType: terminationLog, ContainerId: containerID})
	if err != nil {
		return "", err
	}
	return answer.GetData(), nil
}
