package container

import (
	"testing"

	"github.com/containerd/errdefs"
)

func TestTransitions(t *testing.T) {
	all := []State{StateCreating, StateCreated, StateRunning, StatePaused, StateStopped, StateRemoving}
	allowed := map[[2]State]bool{
		{StateCreating, StateCreated}: true, {StateCreating, StateRemoving}: true,
		{StateCreated, StateRunning}: true, {StateCreated, StateStopped}: true, {StateCreated, StateRemoving}: true,
		{StateRunning, StatePaused}: true, {StateRunning, StateStopped}: true, {StateRunning, StateRemoving}: true,
		{StatePaused, StateRunning}: true, {StatePaused, StateStopped}: true, {StatePaused, StateRemoving}: true,
		{StateStopped, StateRemoving}:  true,
		{StateRemoving, StateRemoving}: true, // a failed removal is tried again
	}
	for _, from := range all {
		for _, next := range all {
			c := &Container{id: "c1", state: from}
			err := c.to(next)
			if want := allowed[[2]State{from, next}]; (err == nil) != want || err != nil && !errdefs.IsFailedPrecondition(err) {
				t.Errorf("%s to %s: %v", from, next, err)
			}
			if want := map[bool]State{true: next, false: from}[err == nil]; c.State() != want {
				t.Errorf("%s to %s: is %s", from, next, c.State())
			}
		}
	}
}
