// Package sandbox is a pod: one utility VM with its network, its guest agent and what they left on the host. It serves
// containerd's Sandbox API and offers the pod to the task service.
//
// A pod is in one of these states, and every change of state is a row of the table in state.go:
//
//	              create          created         start           started
//	New ──────────────▶ Creating ─────────▶ Created ─────▶ Starting ─────────▶ Running
//	 │                     │ failed            │ stop         │ failed            │ stop, died
//	 │ stop                ▼                   ▼              ▼                   ▼
//	 └────────────────▶ Stopped ◀───────── Stopping ◀─────────┴───────────────────┘
//	                       released           │ ▲
//	                                    fault ▼ │ stop
//	                                         Invalid
//
// Everything that a pod acquires is pushed on one stack of undo steps next to the acquisition, and Stopping unwinds that
// stack in reverse: containers, sandbox in the guest, connection, VM, network, state directory. A step that fails stays on
// the stack and the pod is Invalid: it refuses everything except another stop, which tries the remaining steps again.
//
// The pod never mounts a container's root file system on the host and never reads a layer: the mounts that containerd
// hands over are only the carrier of an image's reference.
package sandbox
