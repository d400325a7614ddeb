// Package require lets a test name what it needs. A test that cannot run here is skipped with the reason and the cure;
// with COFFER_REQUIRE=1, as make test sets it, a missing need is a failure, so that nothing is skipped unseen.
package require

import (
	"os"
	"testing"

	"github.com/coffer-project/coffer/integration/harness"
)

// Node skips unless this machine can run a whole node: root, QEMU, containerd, a registry, Coffer's own binaries.
func Node(t testing.TB) {
	t.Helper()
	if os.Getenv("COFFER_TEST_TIER") == "unit" {
		t.Skip("COFFER_TEST_TIER=unit: tests that need a VM are not run")
	}
	if os.Getuid() != 0 {
		missing(t, "needs root for network namespaces and mounts: run make test as root")
	}
	if _, err := harness.FindTools(); err != nil {
		missing(t, err.Error())
	}
}

func missing(t testing.TB, reason string) {
	t.Helper()
	if os.Getenv("COFFER_REQUIRE") != "" {
		t.Fatal(reason)
	}
	t.Skip(reason)
}
