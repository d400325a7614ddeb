// Package container runs the containers of the pod: it pulls their images, builds their root file systems, and drives a runtime.
//
// Each container is a state machine:
//
//	          Create            Start            Pause
//	(none) ----------> creating -> created --------> running <--------> paused
//	                      |           |                 |     Resume       |
//	                failed|           | init exits      | init exits       |
//	                      v           v                 v                  v
//	                   (none)      stopped <----------------------------------
//	                                  |
//	      Remove, from every state:   v
//	                              removing ----> (none)
//
// A failed Remove leaves the container in removing with what is still to be undone; only Remove may be called then, and goes on
// where it failed. While creating, Remove gives the creation up and waits for its end.
//
// Requests come from the host and are hostile. What a container may ask for is decided by package spec and by the storage rules
// here: exactly one image, pulled inside the guest, is its root. Nothing in this package logs or returns what runs in a container.
package container
