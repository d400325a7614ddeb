// Package extension mounts extension images: read-only disks with programs that the guest's own image is too small for, such
// as the GPU driver. It is Kata's contract for them, so that images made for Kata serve here, too.
//
//	virtio disk, serial extension-NAME          kernel command line
//	├─ partition 1: EROFS          ◀─ data       kata.extension.NAME.verity_params=
//	└─ partition 2: hash tree      ◀─ dm-verity   root_hash=…,salt=…,data_blocks=…,data_block_size=…,hash_block_size=…
//	                                      └▶ /run/kata-extensions/NAME, read-only, nosuid, nodev
//
// The disk is the host's and is not believed: each block that is read is compared with the hash tree, whose root is on the
// kernel command line, which a TEE measures. A disk without parameters, parameters without a disk, and a disk without a hash
// tree are refused; there is no unverified mount.
//
// The package must never run anything that an extension holds.
package extension
