// Package scratch gives the guest room beyond its memory, on a disk of the host's that the host cannot read.
//
// The disk is encrypted by the kernel (dm-crypt) with a random key that exists in this guest's memory only and is gone with
// it. Nothing on the disk is believed: it is taken for empty, and gets a file system of our own making each time.
//
//	virtio disk ─▶ dm-crypt (AES-XTS) ─▶ ext4            Encrypted
//	virtio disk ─▶ dm-integrity ─▶ dm-crypt (AES-GCM) ─▶ ext4      Authenticated
//
// With Encrypted, the host can destroy data, and can bring a sector's earlier content back, but can neither read nor forge
// it: what it changes turns into garbage of 16 bytes each. With Authenticated, what it changes is an I/O error; earlier
// content can still be brought back. In both cases it sees which parts of the disk are written, and when.
//
// The package must never store the key, tell it to anybody, or take one from outside.
package scratch
