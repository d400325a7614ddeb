// Package policy decides which requests of the host the guest answers at all.
//
// The decision is made before anything is done, on the decoded request, by an [Engine]. This package holds the engine that is built in:
// a fixed table with a reason for each refusal. It never loosens by request: what it denies the host cannot turn on. A policy from the
// measured document will be a further engine, and the two must then both allow.
//
// What a container may look like (mounts, devices, namespaces) is not decided here but where the request is rebuilt, in package
// container/spec: that holds under every policy.
package policy

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
)

// Engine decides about requests. Implementations are safe for concurrent use.
type Engine interface {
	// Allow returns nil for a request that may be carried out. method is the bare name, such as CreateContainer. The error is of class
	// PermissionDenied and its text, which the host sees, says why; it holds nothing of the request.
	Allow(ctx context.Context, method string, request proto.Message) error
}

// deny makes the error of a refusal.
func deny(method, reason string) error {
	return fmt.Errorf("%s is blocked by policy: %s: %w", method, reason, errdefs.ErrPermissionDenied)
}
