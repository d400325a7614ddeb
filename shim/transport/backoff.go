package transport

import (
	"context"
	"time"
)

// Bounds of the pause between two attempts: short enough not to be felt at start-up, long enough not to load an
// emulated guest.
const (
	firstPause = 5 * time.Millisecond
	lastPause  = 200 * time.Millisecond
)

// retry calls attempt until it succeeds, says that another attempt is useless, or ctx ends; the last error is returned.
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
			return err
		case <-timer.C:
		}
		pause = min(2*pause, lastPause)
	}
}
