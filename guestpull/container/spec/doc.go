// Package spec rebuilds the runtime specification of a container from what the host asked for.
//
// Nothing of the host's document is passed through: each field that is known to be harmless is checked and copied into a new
// document, what only makes sense on the host's own kernel (cgroup device rules, CPU sets, LSM labels, annotations) is replaced by
// the guest's own choice, and everything else is refused. So a field that nobody thought of cannot have an effect.
//
// The package reads no file and makes no mount; it is a pure function of its input.
package spec
