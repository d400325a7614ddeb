// Package attacks is what a host tries that wants to run something else than the pod's owner: each of its tests is such an attempt, made
// over the control channel against the guest's own server, policy engine and container manager, and has to fail. Only the registry and
// the runtime are stand-ins. The policy is the one that cofferctl policy generate writes.
package attacks
