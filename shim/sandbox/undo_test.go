package sandbox

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
)

func TestUndo(t *testing.T) {
	var order []string
	fail := map[string]error{"b": errors.New("busy")}
	var u undo
	for _, name := range []string{"a", "b", "c"} {
		u.push(name, func(ctx context.Context) error {
			if err := ctx.Err(); err != nil {
				return err
			}
			order = append(order, name)
			return fail[name]
		})
	}
	// The caller has gone: its context must not keep anything from being released.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := u.unwind(ctx)
	if !errors.Is(err, fail["b"]) || !strings.Contains(err.Error(), "b: busy") {
		t.Errorf("error is %v", err)
	}
	if !slices.Equal(order, []string{"c", "b", "a"}) {
		t.Errorf("order is %q", order)
	}
	delete(fail, "b")
	order = nil
	if err := u.unwind(ctx); err != nil || !slices.Equal(order, []string{"b"}) {
		t.Errorf("second time: %q, %v; want only what had failed", order, err)
	}
	if err := u.unwind(ctx); err != nil || len(order) != 1 {
		t.Errorf("third time: %q, %v; want nothing", order, err)
	}
}
