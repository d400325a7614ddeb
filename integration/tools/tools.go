//go:build tools

// Package tools pins the programs of other projects that Coffer is developed and tested with.
package tools

import (
	_ "github.com/containerd/containerd/v2/cmd/containerd"
	_ "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2"
	_ "github.com/containerd/containerd/v2/cmd/ctr"
	_ "github.com/containerd/ttrpc/cmd/protoc-gen-go-ttrpc"
	_ "github.com/distribution/distribution/v3/cmd/registry"
	_ "github.com/opencontainers/runc"
	_ "google.golang.org/protobuf/cmd/protoc-gen-go"
)
