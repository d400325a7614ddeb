// Package ext4 makes an empty ext4 file system, without a program such as mke2fs. It knows the one shape that suits a disk
// which is new, is used once and is lost with its machine: no journal, checksums on all metadata, no copies of the
// superblock, and block groups that stay untouched until the kernel needs them. So only the first blocks of a disk are
// written, whatever its size: a superblock, 32 bytes per 128 MiB, two folders, and a bitmap at either end.
//
// The layout is that of the kernel's Documentation/filesystems/ext4; numbers in comments are offsets in its tables.
package ext4
