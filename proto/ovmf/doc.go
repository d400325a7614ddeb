// Package ovmf reads what a firmware image (edk2's OVMF and its kin) says about itself at its end: which parts of the guest's
// memory a TEE measures at launch, and whether there is room for the hashes of a kernel. Whoever launches a guest learns from it
// whether an image can start under a TEE at all, and whoever owns the guest computes measurements with it.
//
// Images come from many makers, so every offset is checked. All errors are errdefs.ErrInvalidArgument.
package ovmf
