// Package pods tells which Coffer pods a node has and takes away what killed shims have left. All it needs are the shims'
// state directories: neither containerd nor CRI is asked, so that it works beside a broken one, and for pods of ctr.
package pods
