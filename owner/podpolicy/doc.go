// Package podpolicy writes the interface policy of a pod: what its manifest says, with each image pinned by digest and completed by the
// image's own configuration, as rules that the guest enforces (proto/agentpolicy).
//
// The rules are the same for every pod, in rules.rego and devices.rego; what differs is data. Whatever a manifest says that the rules
// cannot bind is an error and never left out: a policy that looks complete and is not would be worse than none.
package podpolicy
