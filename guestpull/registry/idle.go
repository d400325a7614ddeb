package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/containerd/errdefs"
)

// errTruncated is a body that ended, or broke, before its end.
var errTruncated = errors.New("connection broke")

// idleBody cuts the connection when a single read takes longer than the limit, or when all of them bring too little. The
// time between reads, in which the caller is busy, does not count.
type idleBody struct {
	ctx    context.Context // of the request; its cause tells a stall from a cancelled pull
	cancel context.CancelCauseFunc
	rc     io.ReadCloser
	host   string
	idle   time.Duration
	rate   int64
	timer  *time.Timer

	// waited and got are the time in reads, and what they brought, since the rate was last looked at.
	waited time.Duration
	got    int64
	slow   error
}

func newIdleBody(ctx context.Context, cancel context.CancelCauseFunc, rc io.ReadCloser, host string, idle time.Duration, rate int64) *idleBody {
	timer := time.AfterFunc(idle, func() { cancel(errStalled) })
	timer.Stop()
	return &idleBody{ctx: ctx, cancel: cancel, rc: rc, host: host, idle: idle, rate: rate, timer: timer}
}

func (b *idleBody) Read(p []byte) (int, error) {
	if b.slow != nil {
		return 0, b.slow
	}
	start := time.Now()
	b.timer.Reset(b.idle)
	n, err := b.rc.Read(p)
	b.timer.Stop()
	switch {
	case err == nil:
		b.slow = b.pace(n, time.Since(start))
		return n, nil
	case err == io.EOF:
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

// pace fails when the registry sends too little in the time that was spent with waiting for it.
func (b *idleBody) pace(n int, d time.Duration) error {
	b.waited += d
	b.got += int64(n)
	if b.waited < 2*b.idle {
		return nil
	}
	least := int64(b.waited.Seconds() * float64(b.rate))
	if b.got < least {
		return &statusError{
			msg: fmt.Sprintf("registry %s sent %d bytes in %s, less than %d in a second; check its load and the network between it and the pod",
				b.host, b.got, b.waited.Round(time.Millisecond), b.rate),
			class: errdefs.ErrUnavailable,
		}
	}
	b.waited, b.got = 0, 0
	return nil
}

func (b *idleBody) Close() error {
	b.timer.Stop()
	b.cancel(nil)
	return b.rc.Close()
}
