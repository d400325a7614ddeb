// Package files takes the pod's small files from the host: hosts, resolv.conf, secrets, config maps. There is no shared
// file system; a file comes in pieces and is visible under its name only once it is whole.
//
// A request is the host's word and may be hostile. Nothing is written outside one directory, whatever names and links
// say: all access goes through an os.Root, and mounts of volumes follow no link. Sizes and numbers are bounded, since files live in guest memory. Set-user-id
// bits are dropped.
//
// A file may hold a sealed secret. It is opened where somebody has asked for that (Open), after the policy has judged the sealed text; the
// secret is in guest memory only, and nobody hands files back to the host.
package files
