// Package block hands block devices of the host to containers in a VM.
//
// A device is shared by all containers of the pod that use it in the same way (for reading alone, or for writing, too):
//
//	          Reserve                 Add                     Remove (the last one)
//	(none) ────────────▶ reserved ────────────▶ added ────────────▶ (none)
//	                        ▲  │ failed, or          │ failed
//	                 Remove │  │ Remove               ▼
//	                        └──┘                  invalid ──Remove──▶ (none), or invalid again
//
// Reserve looks at nothing but numbers. Add opens the device and plugs it into the VM. Remove takes it out once nobody
// uses it any more; the guest must agree to that, and a device that it holds on to is invalid: another container that
// asks for it is refused until a Remove has succeeded. The end of the VM releases everything.
package block
