// Package status is the window through which a node's admin looks into a pod: a unix socket in the pod's state directory
// on which its shim answers two questions over HTTP, and the client for them. It needs neither containerd nor CRI, can
// only be read, and does not keep an idle shim alive.
//
//	GET /report                  the pod's report, JSON
//	GET /console?lines=N&follow  the guest's console as plain text, where the configuration allows it
//
// The socket is root's alone, as the directory is.
package status

import "path/filepath"

// SocketName is the socket's name in a state directory.
const SocketName = "status.sock"

// maxSocketPath is what the kernel's sockaddr_un holds, in bytes, without the closing zero.
const maxSocketPath = 107

// Socket is the path of the socket in a state directory.
func Socket(stateDir string) string { return filepath.Join(stateDir, SocketName) }
