// Package registrytest is an OCI registry for tests, honest until it is told otherwise, and a builder of small images.
//
// The registry speaks the distribution protocol (pull, push, ranges), keeps everything in memory, logs each request with
// its client and kind, and misbehaves on demand: see Fault. It can listen on any address, so that virtual machines can
// reach it, with or without TLS.
package registrytest
