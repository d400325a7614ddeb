// Package snp appraises attestation reports of AMD SEV-SNP guests on Milan, Genoa and Turin processors, signed by the chip's own key
// (VCEK) or by a cloud provider's (VLEK).
//
// Genuine means: the key's certificate leads to AMD's root for that processor, is for that chip and for the firmware versions that the
// report names, and signed the report. Evidence is refused beyond appeal, too, where the guest may be debugged by its host or where the
// report was not asked for at the most privileged level (VMPL 0).
//
// AMD's roots are built in. The only other roots are those of Options.TestRoots, which exist for tests and demonstrations: whoever sets
// them believes reports that software forged, and no longer believes real ones.
package snp
