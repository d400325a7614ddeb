package container

import (
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
)

// State is where a container is in its life.
type State int

// The states, see the package's diagram.
const (
	StateCreating State = iota
	StateCreated
	StateRunning
	StatePaused
	StateStopped
	StateRemoving
)

var stateNames = [...]string{"creating", "created", "running", "paused", "stopped", "removing"}

// String returns the state's name for messages.
func (s State) String() string {
	if s < 0 || int(s) >= len(stateNames) {
		return fmt.Sprintf("state %d", int(s))
	}
	return stateNames[s]
}

// transitions lists where each state may lead.
var transitions = map[State][]State{
	StateCreating: {StateCreated, StateRemoving},
	StateCreated:  {StateRunning, StateStopped, StateRemoving},
	StateRunning:  {StatePaused, StateStopped, StateRemoving},
	StatePaused:   {StateRunning, StateStopped, StateRemoving},
	StateStopped:  {StateRemoving},
	StateRemoving: {StateRemoving},
}

// may reports whether a container can go from s to next.
func (s State) may(next State) bool {
	return slices.Contains(transitions[s], next)
}

// to moves the container on. FailedPrecondition: its state does not allow it.
func (c *Container) to(next State) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.state.may(next) {
		return fmt.Errorf("container %s is %s and cannot become %s: %w", c.id, c.state, next, errdefs.ErrFailedPrecondition)
	}
	c.state = next
	return nil
}

// State returns the current state.
func (c *Container) State() State {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state
}

// require fails unless the container is in one of the states.
func (c *Container) require(states ...State) error {
	now := c.State()
	if slices.Contains(states, now) {
		return nil
	}
	return fmt.Errorf("container %s is %s: %w", c.id, now, errdefs.ErrFailedPrecondition)
}
