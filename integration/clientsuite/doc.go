// Command clientsuite runs containerd's own client tests (integration/client) with Coffer as runtime and snapshotter, on a
// private node, and compares what fails with contrib/conformance/client-suite.md. The tests are built from the version of
// containerd that this repository depends on; nothing of them is part of it.
//
// The tests make containers without a network, whose images a guest could not pull. So the node's shim is a small program
// (folder shim) that first gives each such container a network, as ctr run --cni would, and then becomes the real one.
package main
