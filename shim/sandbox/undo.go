package sandbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// stepBudget bounds one undo step, unless the step says otherwise; style rule 8.
const stepBudget = 10 * time.Second

// undo is what has to be taken back, newest last. It is not safe for concurrent use: the pod's operation lock guards it.
type undo struct {
	steps []undoStep
}

type undoStep struct {
	name   string
	budget time.Duration
	run    func(context.Context) error
}

// push adds a step next to the acquisition that it takes back. run is idempotent: it may be tried again.
func (u *undo) push(name string, run func(context.Context) error) {
	u.steps = append(u.steps, undoStep{name: name, budget: stepBudget, run: run})
}

// unwind runs the steps in reverse, all of them even when some fail, and keeps those that failed. Each step gets its
// own bounded context, detached from ctx's end: what was acquired is released although the caller has gone.
func (u *undo) unwind(ctx context.Context) error {
	var faults []error
	var kept []undoStep
	for _, step := range slices.Backward(u.steps) {
		if err := step.try(ctx); err != nil {
			faults = append(faults, fmt.Errorf("%s: %w", step.name, err))
			kept = append(kept, step)
		}
	}
	slices.Reverse(kept)
	u.steps = kept
	return errors.Join(faults...)
}

func (s undoStep) try(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.budget)
	defer cancel()
	return s.run(ctx)
}
