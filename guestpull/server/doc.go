// Package server answers the host: it serves the agent protocol, its health service and our diagnostics on the control channel.
//
// Every call goes through one chain: the identifiers in the request are checked, the policy is asked, the call is logged (its name, its
// identifiers and how long it took, never what it carries), and an error becomes a status with a class and a short reason. A method
// here is a table of contents; the work is done by packages container, sandbox, network and files.
//
// The protocol's methods that this guest does not offer answer Unimplemented with the reason, in refused.go.
package server
