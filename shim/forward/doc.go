// Package forward makes servers on the loopback of a pod's VM reachable where containerd's port-forward looks for them:
// on the loopback of the pod's network namespace on the host.
//
// containerd enters that namespace and connects to localhost; no call tells the shim of it. Nobody listens there, since
// the pod runs in its VM. So Start puts one listener into the namespace, and an eBPF program of type sk_lookup that the
// kernel asks for the listener of each new TCP connection to 127.0.0.0/8 or ::1, whatever its port: the answer is ours.
// Each connection is then relayed to the guest, by a stream of its own (package proto/forward), with its port.
//
// The guest's answer comes after the host's connection was made. A port that nobody listens on, in the guest, is thus
// seen on the host as a connection that is reset at once, not as one that is refused.
//
// The program is attached by a link that lives as long as its file descriptor, which only the shim holds, and the
// sockets are the shim's: nothing is left behind by a shim that is killed. It needs Linux 5.9 and CAP_BPF and
// CAP_NET_ADMIN, or root. Where it cannot be had, the pod runs without port-forward: connections are refused.
package forward
