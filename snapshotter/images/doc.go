// Package images asks containerd what is known of an image on this node: its manifest, its configuration and who names
// it. Both documents are in containerd's content store as soon as a pull has begun, and no layer has to be there.
//
// Nothing that must work without containerd may depend on an answer. Every question is bounded in time and in size,
// nothing is asked before it is needed, and a containerd that does not answer gives errdefs.ErrUnavailable at once and
// is asked again the next time. Documents are what a registry sent: they are parsed with limits and only told on.
//
// All questions are asked in the containerd namespace of the context. That of a request to the snapshotter has it.
package images
