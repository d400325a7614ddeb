// Package tee is the launch side of confidential guests: whether this machine can start one, and what its TEE is told.
//
// A guest is bound to its initdata document here. The document's digest goes into the field that the TEE's reports carry (SNP:
// HOST_DATA, TDX: MRCONFIGID), where the guest and the key broker find it; the host cannot change it once the guest runs. What is
// measured besides (firmware, kernel, initrd and command line) is the same for all pods of a configuration and size, so that
// their owner can compute it beforehand.
//
// Everything that is asked of the machine goes through Host, so that tests need no TEE. Nothing in this package protects a guest:
// a host that lies to itself starts guests that cannot attest themselves.
package tee
