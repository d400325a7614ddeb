// Package guestimage builds the image that a guest boots: kernel and initramfs, from a Linux kernel package, a static
// runc and the coffer-guest program.
//
// The image's owner wants to know what is measured at launch, so the build is a pure function of its inputs: the same
// three inputs give the same bytes, whatever the time, the user, the file modes or the order of directories. It needs
// no other program and no root.
//
//	kernel package -> vmlinuz -> vmlinux (for machines that start a kernel directly)
//	               -> modules -> closure and load order \
//	runc, coffer-guest, static files --------------------> initrd.cpio
//	digests and sizes of all of it -> manifest.json
package guestimage
