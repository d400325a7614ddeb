// Package network joins a pod's network namespace to its VM.
//
// The CNI plugins have put interfaces with addresses into the namespace (veth, macvlan, ...). For each of them Attach
// makes a tap device beside it and two traffic control filters that hand every frame from one to the other, so that
// the guest's card stands where the pod's interface stood: same MAC, same MTU, same addresses. The guest learns those
// from the Attachment. The interface keeps its addresses on the host, because CNI's teardown and the pod's network
// statistics look at them; its stack never sees a frame, since the filters take them all at ingress.
//
// Nothing of this outlives a crash in a harmful way: the taps are not persistent, so they vanish with the last process
// that holds them open (QEMU), and a filter that points to a vanished tap is replaced by the next Attach and goes away
// with the namespace.
package network
