// Package task serves containerd's Task API v3: the containers of one pod and the processes in them.
//
// Every container and every exec is a process with this life; a container's first process and its container share it:
//
//	Create/Exec       Start          exit          Delete
//	─────────▶ created ────▶ running ────▶ stopped ─────▶ (forgotten)
//	              │           │  ▲ Resume   ▲  ▲
//	              │     Pause ▼  │          │  │
//	              │          paused ────────┘  │
//	              └── kill before start ───────┘
//
// A process is stopped when its output has reached the client's FIFOs and the guest has told its exit status; then, in
// this order, its FIFOs are closed, waiters are released and the exit event is published. A container's first process is the
// last of its processes to be reported. When the pod is gone, all its processes are stopped with an exit status that
// says so. Events of one container leave in the order in which things happened, on the shim's own context: a client
// that goes away must not take them with it.
//
// The pod itself is one of three kinds. Under the shim sandboxer it was made by the Sandbox API. In podsandbox mode the
// task of the pause container makes it and stands for it: a virtual process that runs as long as the VM. A container that
// names no pod at all (ctr, nerdctl) makes a pod of its own and ends it with its task. If its client names no network
// namespace either, the pod makes one at Create, where OCI hooks or the client find it by the task's process id, and its VM
// boots at Start, when the network is there.
package task
