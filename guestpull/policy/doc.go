// Package policy decides which requests of the host the guest answers at all.
//
// The decision is made before anything is done, on the decoded request, by an [Engine]. Which one it is, the measured document says:
//
//	document            engine
//	none                Builtin: development, the host is believed
//	with policy.rego    Measured: the owner's rules, and Builtin
//	without             Strict: only what the verified images say runs
//	that is faulty      Denied: nothing, with the fault as the reason
//
// A document can ask for Builtin alone, which is then part of what it attests. Until it is known what the document says, requests
// wait in [Late].
//
// Builtin holds under all of them and never loosens by request: what it denies, no policy can turn on. What a container may look like
// (mounts, devices, namespaces) is decided where the request is rebuilt, too, in package container/spec.
//
// Reasons are short, and hold nothing but names that the host has given itself.
package policy
