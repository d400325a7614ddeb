package sandbox

import (
	"fmt"

	"github.com/containerd/errdefs"
)

// State is where a pod stands in its life.
type State int

// The states of a pod; the package comment draws them.
const (
	// StateNew knows nothing yet: the shim runs and waits for its first request.
	StateNew State = iota
	// StateCreating reads the configuration and prepares the state directory.
	StateCreating
	// StateCreated holds a state directory; nothing runs.
	StateCreated
	// StateStarting joins the network, boots the VM and sets up the guest.
	StateStarting
	// StateRunning has a guest that takes containers.
	StateRunning
	// StateStopping releases what the pod holds.
	StateStopping
	// StateStopped holds nothing any more. It is final.
	StateStopped
	// StateInvalid could not release something; the only way out is another stop.
	StateInvalid
)

var stateNames = [...]string{"new", "creating", "created", "starting", "running", "stopping", "stopped", "invalid"}

func (s State) String() string {
	if s < 0 || int(s) >= len(stateNames) {
		return fmt.Sprintf("state(%d)", int(s))
	}
	return stateNames[s]
}

// event is what moves a pod from one state to the next.
type event int

const (
	eventCreate   event = iota // a client asks for the pod
	eventCreated               // the state directory is there
	eventStart                 // a client asks for the VM
	eventStarted               // the guest is ready
	eventFailed                // creating or starting went wrong
	eventStop                  // a client asks for the end
	eventDied                  // the VM ended or the agent was lost
	eventReleased              // nothing is held any more
	eventFault                 // something could not be released
)

var eventNames = [...]string{"create", "created", "start", "started", "failed", "stop", "died", "released", "fault"}

func (e event) String() string { return eventNames[e] }

// transitions is the whole life of a pod. An event that has no row for a state is refused.
var transitions = map[State]map[event]State{
	StateNew:      {eventCreate: StateCreating, eventStop: StateStopping},
	StateCreating: {eventCreated: StateCreated, eventFailed: StateStopping},
	StateCreated:  {eventStart: StateStarting, eventStop: StateStopping},
	StateStarting: {eventStarted: StateRunning, eventFailed: StateStopping},
	StateRunning:  {eventStop: StateStopping, eventDied: StateStopping},
	StateStopping: {eventReleased: StateStopped, eventFault: StateInvalid},
	StateInvalid:  {eventStop: StateStopping},
	StateStopped:  {},
}

// next looks a transition up. It fails with errdefs.ErrFailedPrecondition when the table has none.
func (s State) next(e event) (State, error) {
	to, ok := transitions[s][e]
	if !ok {
		return s, fmt.Errorf("pod is %s, cannot %s: %w", s, e, errdefs.ErrFailedPrecondition)
	}
	return to, nil
}
