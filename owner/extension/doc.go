// Package extension packs extension images: disks with programs for a guest, such as the GPU driver, that the guest checks
// block by block against a hash on its kernel command line. The layout and the kernel parameter are Kata's, so that the
// images serve guests of Kata, too.
//
// The same file system always gives the same image and the same parameter, which is what the launch measurement holds.
package extension
