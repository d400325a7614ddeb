// Package server serves a snapshotter to containerd: gRPC on a unix socket.
package server
