// Package appraise judges evidence: is it genuine, is it bound to this session and to this initdata, and is the guest that it describes
// one of those that the owner trusts. Each kind of TEE has its verifier in a package of its own; a Registry holds those that are in use.
//
// The two questions are kept apart. Whether evidence is genuine and bound is decided by a verifier alone and cannot be configured away:
// what fails here is an error. Whether the guest is trusted is a matter of the owner's reference values: it gives a TrustVector, whose
// worst entry is the Status.
package appraise
