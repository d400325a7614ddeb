// Package manager is the life of the shim as a process: containerd runs the binary as `start` to get the address of a
// pod's shim, as `delete` to clean up after one that died, and as `-info` to learn what the runtime can do.
//
// One shim serves one pod. Under `sandboxer = "shim"` containerd itself sends a pod's containers to the shim that its
// sandbox got. In podsandbox mode, and for clients without sandboxes, `start` is called per container and finds the
// pod's shim by the sandbox id in the container's annotations.
//
// Two processes meet in a bundle: `start` leaves a Record there, the shim adds where its state is, and `delete`, which
// gets no options from containerd, reads both. A bundle without a Record belongs to a container of somebody else's
// pod: `delete` then has nothing to release, which matters because containerd calls it after every container.
package manager
