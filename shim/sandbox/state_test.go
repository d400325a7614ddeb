package sandbox

import (
	"testing"

	"github.com/containerd/errdefs"
)

// TestTransitions walks the whole table: every pair of state and event that it does not name is refused and changes
// nothing.
func TestTransitions(t *testing.T) {
	type row struct {
		from State
		on   event
	}
	want := map[row]State{
		{StateNew, eventCreate}:        StateCreating,
		{StateNew, eventStop}:          StateStopping,
		{StateCreating, eventCreated}:  StateCreated,
		{StateCreating, eventFailed}:   StateStopping,
		{StateCreated, eventStart}:     StateStarting,
		{StateCreated, eventStop}:      StateStopping,
		{StateStarting, eventStarted}:  StateRunning,
		{StateStarting, eventFailed}:   StateStopping,
		{StateRunning, eventStop}:      StateStopping,
		{StateRunning, eventDied}:      StateStopping,
		{StateStopping, eventReleased}: StateStopped,
		{StateStopping, eventFault}:    StateInvalid,
		{StateInvalid, eventStop}:      StateStopping,
	}
	for from := StateNew; from <= StateInvalid; from++ {
		for on := eventCreate; on <= eventFault; on++ {
			to, err := from.next(on)
			expected, legal := want[row{from, on}]
			switch {
			case legal && (err != nil || to != expected):
				t.Errorf("%s on %s: got %s, %v, want %s", from, on, to, err, expected)
			case !legal && (!errdefs.IsFailedPrecondition(err) || to != from):
				t.Errorf("%s on %s: got %s, %v, want a refusal", from, on, to, err)
			}
		}
	}
}

// TestEveryStateEnds: from every state the pod can reach Stopped.
func TestEveryStateEnds(t *testing.T) {
	for from := StateNew; from <= StateInvalid; from++ {
		seen, todo := map[State]bool{from: true}, []State{from}
		for len(todo) > 0 {
			for _, to := range transitions[todo[0]] {
				if !seen[to] {
					seen[to] = true
					todo = append(todo, to)
				}
			}
			todo = todo[1:]
		}
		if !seen[StateStopped] {
			t.Errorf("no way from %s to %s", from, StateStopped)
		}
	}
}
