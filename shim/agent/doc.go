// Package agent is the shim's client of the agent in the guest: Kata's AgentService over one ttrpc connection.
//
// It adds what every call needs and no caller should write twice: a deadline per method (deadlines.go), errors of
// errdefs classes instead of RPC status (errors.go), the loops around stdio (process.go) and the probe for Coffer's own
// additions (diagnostics.go). It knows nothing of tasks, specs or VMs; the connection comes from a dial function.
//
// The guest may be a stock Kata guest. What it answers is data for people and for the container's owner, never an
// instruction: no path, command or size from the guest is acted upon here.
package agent
