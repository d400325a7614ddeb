// Package harness builds a small node out of real parts: a private network namespace with a bridge, a registry
// (CNCF Distribution), a key broker, the snapshotter and containerd with its CRI. The demo and the integration tests
// run on it. Nothing leaves the namespace, and Close ends every process and removes every file that Start made.
package harness
