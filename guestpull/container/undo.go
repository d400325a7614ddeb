package container

import "context"

// undo is what has to be done to get rid of a container, newest last.
type undo []func(ctx context.Context) error

func (u *undo) push(f func(ctx context.Context) error) { *u = append(*u, f) }

// unwind undoes in reverse. It stops at the first failure, because an older step relies on the newer ones (a folder is deleted only
// when nothing is mounted in it); the failed step and all older ones stay for another try.
func (u *undo) unwind(ctx context.Context) error {
	for len(*u) > 0 {
		last := len(*u) - 1
		if err := (*u)[last](ctx); err != nil {
			return err
		}
		*u = (*u)[:last]
	}
	return nil
}
