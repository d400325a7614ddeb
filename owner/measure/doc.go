// Package measure computes, from the files that a guest is launched with, what a genuine TEE will say about it: the launch digest of
// SEV-SNP, the MRTD of TDX, and the runtime registers (RTMR) that follow from an event log. The owner gives them to the key broker as
// reference values.
//
// The files are the owner's own; still, their tables are read with every bound checked, for firmware comes from many makers.
package measure
