//go:build !nvml

// Command coffer-gpu-evidence without NVIDIA's library, which takes the build tag nvml.
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "coffer-gpu-evidence: this build cannot load NVIDIA's library: build it by make gpu-evidence")
	os.Exit(1)
}
