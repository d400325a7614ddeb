// Package live keeps copies of the kubelet's volumes in a guest up to date: config maps, secrets, projected and downward
// API volumes.
//
// The kubelet writes each version of such a volume into a folder of its own and then switches to it by renaming a link
// over the link ..data, through which all files are read:
//
//	..2026_11_23_08_00_00.1/key
//	..data -> ..2026_11_23_08_00_00.1
//	key    -> ..data/key
//
// A copy follows in the same order: the new folder completely, then the link, then the links of new and vanished keys,
// and last the old folder goes. So whoever reads the copy sees one version or the other, never a mix. The agent's own
// part is to replace a link in one step; Kata's agent has no link for a moment, and cannot remove: see [Volume].
//
// inotify tells of switches. Its events may get lost (a full queue, a limit of the machine, a folder mounted over), so every
// volume is looked at again from time to time, which costs a few system calls.
package live
