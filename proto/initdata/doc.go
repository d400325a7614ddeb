// Package initdata is the measured document of a pod (initdata 0.1.0): a TOML text whose digest is bound into the TEE at launch
// (HOST_DATA of SEV-SNP, MRCONFIGID of TDX) and which tells the guest its key broker, its registries and its policy.
//
// The host carries the text as an annotation and hands it to the guest on a small disk, so it is not secret, and until its digest was
// compared with the measured one it is hostile input. Parse, the Decode functions and the typed configurations therefore have size
// limits, refuse what they do not know and never act on anything.
//
// The digest is that of the text itself: two texts that parse alike are two documents. Keep the text, not the parsed form.
package initdata
