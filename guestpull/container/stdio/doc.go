// Package stdio holds the guest's ends of a container process's standard streams.
//
// The host pulls output and pushes input in chunks by RPC, so a stream here is not copied anywhere: it stays in its
// pipe or pseudo-terminal until the host asks for it, also long after the process has exited. Nothing in this package
// may keep what flows through it, log it, or put it into an error.
package stdio
