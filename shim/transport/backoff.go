package transport

import (
	"context"
	"fmt"
	"time"
)

// Bounds of the pause between two attempts: short enough not to be felt at start-up, long enough not to load an
// emulated guest.
const (
	firstPause = 5 * time.Millisecond
	lastPause  = 200 * time.Millisecond
)

// retry calls attempt until it succeeds, says that another attempt is useless, or ctx ends. In the last case the error
// is ctx's and no other: an attempt's own class (errdefs.ErrUnavailable, say) would tell the caller that the channel is
// gone, so that it is only quoted.
func retry(ctx context.Context, attempt func() (again bool, err error)) error {
	pause := firstPause
	for {
		again, err := attempt()
		if err == nil || !again {
			return err
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("guest has not answered: %w (last attempt: %s)", ctx.Err(), err.Error())
		case <-timer.C:
		}
		pause = min(2*pause, lastPause)
	}
}
