// Package containers reads and corrects containerd's records of containers, over containerd's own socket.
//
// containerd makes a record before it starts a task, and knows only what can be known on the host. Two things matter to
// others: the shim reads which image the container is of and which group was asked for, and writes who its process really runs as. CRI reports the
// record's user to the kubelet and gives it to every exec.
package containers
