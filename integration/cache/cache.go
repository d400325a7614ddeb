// Package cache says where set-up keeps what is slow to build: containerd, kernels, the guest image, images of benchmarks.
package cache

import (
	"fmt"
	"os"
	"path/filepath"
)

// Dir is COFFER_CACHE, as the Makefile sets it, or what the Makefile takes for it.
func Dir() (string, error) {
	if dir := os.Getenv("COFFER_CACHE"); dir != "" {
		return dir, nil
	}
	base, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the cache folder: set COFFER_CACHE or HOME: %w", err)
	}
	return filepath.Join(base, "coffer"), nil
}
