// Package sign signs images for guests, and for all others who check cosign's signatures: podman, CRI-O, policy
// controllers and Confidential Containers. It writes both of cosign's forms, see package sigstore, and reads and writes
// cosign's key files.
//
// Signatures go to the repository of the image. Neither a certificate authority nor a transparency log is asked: whoever
// checks the signature has the key.
//
// A private key never leaves memory but encrypted.
package sign
