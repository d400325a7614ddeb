// Package plugin puts the shim together: it is the one place that knows both containerd's plugin registry and which
// hypervisor there is. Importing it registers the services that the serving process offers; Manager answers containerd's
// other calls of the binary.
//
// One pod is shared by the Sandbox and the Task API. Every request goes through one interceptor, which turns errors of
// errdefs classes into RPC status and tells the life guard that somebody still cares about this shim.
package plugin
