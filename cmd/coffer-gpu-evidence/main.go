//go:build nvml

// Command coffer-gpu-evidence asks the NVIDIA driver one question of the guest's first process, which cannot link NVIDIA's library: see
// package nvgpu. It belongs into the image of the driver, beside the C library that it was built with. Its one argument, which may be
// missing, is the path of the library (libnvidia-ml.so.1).
package main

import (
	"fmt"
	"os"

	"github.com/coffer-project/coffer/guestpull/attest/nvgpu/helper"
	"github.com/coffer-project/coffer/guestpull/attest/nvgpu/nvml"
)

func main() {
	library := ""
	switch len(os.Args) {
	case 1:
	case 2:
		library = os.Args[1]
	default:
		fmt.Fprintln(os.Stderr, "usage: coffer-gpu-evidence [path of libnvidia-ml.so.1], with a question on standard input")
		os.Exit(2)
	}
	os.Exit(helper.Main(os.Stdin, os.Stdout, func() (helper.Library, func() error, error) { return nvml.Open(library) }))
}
