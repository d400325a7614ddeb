package policy

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"

	agentpb "github.com/coffer-project/coffer/proto/agent"
	"github.com/coffer-project/coffer/proto/agentpolicy"
)

// Engine decides about requests. Implementations are safe for concurrent use.
type Engine interface {
	// Allow returns nil for a request that may be carried out. method is the bare name, such as CreateContainer. The error is of class
	// PermissionDenied and its text, which the host sees, says why; it holds nothing of the request.
	Allow(ctx context.Context, method string, request proto.Message) error
	// AllowContainer decides about a container in particular, after Allow: once before anything is done, and once when its images are
	// there and its process is known, before it exists. facts.Stage says which. Its errors are those of Allow.
	AllowContainer(ctx context.Context, request *agentpb.CreateContainerRequest, facts *agentpolicy.Facts) error
}

// deny makes the error of a refusal.
func deny(method, reason string) error {
	return fmt.Errorf("%s is blocked by policy: %s: %w", method, reason, errdefs.ErrPermissionDenied)
}
