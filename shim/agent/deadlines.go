package agent

import (
	"context"
	"errors"
	"fmt"
	"path"
	"time"

	"github.com/containerd/ttrpc"
)

// class sorts methods by how long their answer may take. Those of the zero class need no more than the guest's attention.
type class int

const (
	// classCreate methods include an image pull.
	classCreate class = iota + 1
	// classUnlimited methods end with an event: output, an exit, the kernel's OOM killer, room in a pipe.
	classUnlimited
)

// classes lists the methods that need longer, by name.
var classes = map[string]class{
	"CreateContainer": classCreate,
	"WaitProcess":     classUnlimited,
	"ReadStdout":      classUnlimited,
	"ReadStderr":      classUnlimited,
	"WriteStdin":      classUnlimited,
	"GetOOMEvent":     classUnlimited,
	"WaitPull":        classUnlimited,
}

// deadlines is the interceptor through which all calls of a Client go.
type deadlines struct {
	call, create time.Duration
}

// limit returns the longest time for a method; 0 means none.
func (d deadlines) limit(method string) time.Duration {
	switch classes[method] {
	case classCreate:
		return d.create
	case classUnlimited:
		return 0
	default:
		return d.call
	}
}

func (d deadlines) intercept(
	ctx context.Context, req *ttrpc.Request, resp *ttrpc.Response, info *ttrpc.UnaryClientInfo, invoke ttrpc.Invoker,
) error {
	method := path.Base(info.FullMethod)
	callCtx := ctx
	limit := d.limit(method)
	if limit > 0 {
		var cancel context.CancelFunc
		callCtx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
		// ttrpc wrote the caller's deadline into the request before it came here; the guest should know the real one.
		if deadline, ok := callCtx.Deadline(); ok {
			req.TimeoutNano = max(time.Until(deadline).Nanoseconds(), 1)
		}
	}
	err := nativeError(invoke(callCtx, req, resp), resp)
	switch {
	case err == nil:
		return nil
	case ctx.Err() == nil && errors.Is(callCtx.Err(), context.DeadlineExceeded):
		return fmt.Errorf("guest agent did not answer %s within %s: %w", method, limit, err)
	default:
		return fmt.Errorf("guest agent %s: %w", method, err)
	}
}
