package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/containerd/errdefs"
)

// errTruncated is a body that ended, or broke, before its end. It is not io.ErrUnexpectedEOF because the client below
// would then resume by itself, and resuming is counted in one place only, by blob.
var errTruncated = errors.New("connection broke")

// idleBody cuts the connection when a single read takes longer than the limit. The time between reads, in which the
// caller is busy, does not count.
type idleBody struct {
	ctx    context.Context // of the request; its cause tells a stall from a cancelled pull
	cancel context.CancelCauseFunc
	rc     io.ReadCloser
	host   string
	idle   time.Duration
	timer  *time.Timer
}

func newIdleBody(ctx context.Context, cancel context.CancelCauseFunc, rc io.ReadCloser, host string, idle time.Duration) *idleBody {
	timer := time.AfterFunc(idle, func() { cancel(errStalled) })
	timer.Stop()
	return &idleBody{ctx: ctx, cancel: cancel, rc: rc, host: host, idle: idle, timer: timer}
}

func (b *idleBody) Read(p []byte) (int, error) {
	b.timer.Reset(b.idle)
	n, err := b.rc.Read(p)
	b.timer.Stop()
	switch {
	case err == nil || err == io.EOF:
		return n, err
	case errors.Is(context.Cause(b.ctx), errStalled):
		return n, &statusError{
			msg:   fmt.Sprintf("registry %s sent nothing for %s in the middle of an answer; check its load and the network between it and the pod", b.host, b.idle),
			class: errdefs.ErrUnavailable,
		}
	case b.ctx.Err() != nil:
		return n, b.ctx.Err()
	}
	return n, fmt.Errorf("%w: %v", errTruncated, err) //nolint:errorlint // see errTruncated
}

func (b *idleBody) Close() error {
	b.timer.Stop()
	b.cancel(nil)
	return b.rc.Close()
}
