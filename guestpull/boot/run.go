package boot

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
)

// errReturned is why the machine ends when its server returns without an error: PID 1 has nothing else to do.
var errReturned = errors.New("the guest's server returned")

// Run is the main function of PID 1. It initialises the machine, calls serve, and powers the machine off when serve
// returns or panics; it does not return. An error or a panic becomes the last line on the console.
//
// A panic on another goroutine ends the process at once: the kernel then panics, and the trace that the Go runtime
// printed is what the console ends with.
func Run(ctx context.Context, serve func(context.Context, *Machine) error) {
	powerOff(guard(func() error {
		m, err := Init(ctx)
		if err != nil {
			return err
		}
		if err := serve(ctx, m); err != nil {
			return err
		}
		return errReturned
	}))
}

// guard calls f and turns a panic into an error. The trace goes to the console before it, so that the reason stays last.
func guard(f func() error) (err error) {
	defer func() {
		if cause := recover(); cause != nil {
			sayf("trace: %s", debug.Stack())
			err = fmt.Errorf("panic: %v", cause)
		}
	}()
	return f()
}
