package policy

import (
	"context"
	"fmt"
	"sync"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"

	agentpb "github.com/coffer-project/coffer/proto/agent"
	"github.com/coffer-project/coffer/proto/agentpolicy"
)

// early are the methods that tell nothing but which agent this is. They are asked while the document is still being read, so no document
// decides about them.
var early = map[string]bool{"Check": true, "Version": true, "GetGuestDetails": true}

// Late is an engine that is known later: requests wait for it.
type Late struct {
	known chan struct{}

	mu     sync.Mutex
	engine Engine // valid once known is closed
}

// NewLate returns an engine that waits.
func NewLate() *Late { return &Late{known: make(chan struct{})} }

// Set makes the engine known. A later call replaces it, which is for denying everything when a fault shows later.
func (l *Late) Set(engine Engine) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.engine == nil {
		close(l.known)
	}
	l.engine = engine
}

func (l *Late) get(ctx context.Context) (Engine, error) {
	select {
	case <-l.known:
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.engine, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for the measured document: %w", ctx.Err())
	}
}

// Allow implements [Engine].
func (l *Late) Allow(ctx context.Context, method string, request proto.Message) error {
	if early[method] {
		return NewBuiltin().Allow(ctx, method, request)
	}
	engine, err := l.get(ctx)
	if err != nil {
		return err
	}
	return engine.Allow(ctx, method, request)
}

// AllowContainer implements [Engine].
func (l *Late) AllowContainer(ctx context.Context, request *agentpb.CreateContainerRequest, facts *agentpolicy.Facts) error {
	engine, err := l.get(ctx)
	if err != nil {
		return err
	}
	return engine.AllowContainer(ctx, request, facts)
}

// Denied allows nothing.
type Denied struct{ fault error }

// NewDenied returns an engine that gives the fault as the reason of each refusal.
func NewDenied(fault error) Denied { return Denied{fault} }

// Allow implements [Engine]. DestroySandbox is allowed: what is refused must still be able to end.
func (d Denied) Allow(ctx context.Context, method string, request proto.Message) error {
	if method == "DestroySandbox" {
		return NewBuiltin().Allow(ctx, method, request)
	}
	return fmt.Errorf("%s is blocked by policy: the pod's measured document (initdata) is refused, and with it every request: %.1024s: %w",
		method, d.fault.Error(), errdefs.ErrPermissionDenied)
}

// AllowContainer implements [Engine].
func (d Denied) AllowContainer(ctx context.Context, request *agentpb.CreateContainerRequest, _ *agentpolicy.Facts) error {
	return d.Allow(ctx, createContainer, request)
}
