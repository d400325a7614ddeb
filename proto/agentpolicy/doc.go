// Package agentpolicy is what an interface policy means: which text is one, what a request looks like to it, and what it decides.
//
// It is a table between the owner, who writes policies and tries them out, and the guest, which enforces them: both must read the same
// text in the same way, so they do it with the same code. The contract is that of Kata's agent (package agent_policy; one rule per type
// of request; state by operations), so that what its genpolicy writes works here. What Coffer adds stands below input.coffer, see
// [Facts].
//
// A policy is the owner's, and measured. A request is the host's, and hostile: it is shown to the policy within limits, without the bulk
// data that it carries, and a decision may use only so many steps, so much memory and so much time. A policy has no way to the network,
// to the clock, to chance or to the environment, so a decision depends on the request and the state alone.
package agentpolicy
