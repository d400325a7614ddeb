// Package require lets a test name what it needs. A test that cannot run here is skipped with the reason and the cure;
// with COFFER_REQUIRE=1, as make test sets it, a missing need is a failure, so that nothing is skipped unseen. With
// COFFER_TEST_TIER=unit, as make unit-test sets it, tests that need root or a VM are skipped wherever they run.
//
// The tests of every package may use it: it imports nothing of Coffer's.
package require

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// Root needs root: for mounts, namespaces, and files of other owners.
func Root(tb testing.TB) {
	tb.Helper()
	notUnit(tb)
	if os.Geteuid() != 0 {
		Missing(tb, "needs root: run make test as root")
	}
}

// VM needs to start virtual machines, and returns the path of QEMU.
func VM(tb testing.TB) string {
	tb.Helper()
	notUnit(tb)
	return Program(tb, "qemu-system-x86_64", "run make setup")
}

// Program needs a program, named by its path or to be found on PATH, and returns its path. The cure tells how one gets it.
func Program(tb testing.TB, name, cure string) string {
	tb.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		Missing(tb, "needs "+name+": "+cure)
	}
	return path
}

// Cached needs a file that make setup puts into the cache folder, by its name there or by a pattern: then it returns the
// last that matches.
func Cached(tb testing.TB, pattern string) string {
	tb.Helper()
	cache := os.Getenv("COFFER_CACHE")
	if cache == "" {
		base, err := os.UserCacheDir()
		if err != nil {
			Missing(tb, "needs a cache folder: set COFFER_CACHE or HOME")
		}
		cache = filepath.Join(base, "coffer")
	}
	files, err := filepath.Glob(filepath.Join(cache, pattern))
	if err != nil {
		tb.Fatal(err)
	}
	if len(files) == 0 {
		Missing(tb, "needs "+filepath.Join(cache, pattern)+": run make setup")
	}
	return slices.Max(files)
}

// Tmpfs needs root and returns a folder in memory that lives until the test ends. Flags and options are mount(2)'s.
func Tmpfs(tb testing.TB, flags uintptr, options string) string {
	tb.Helper()
	Root(tb)
	dir := tb.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", flags, options); err != nil {
		Missing(tb, "needs to mount a tmpfs, got "+err.Error()+": run make test where root may mount")
	}
	tb.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			tb.Error(err)
		}
	})
	return dir
}

// Missing ends a test that lacks something. The reason says what, and how one gets it.
func Missing(tb testing.TB, reason string) {
	tb.Helper()
	if os.Getenv("COFFER_REQUIRE") != "" {
		tb.Fatal(reason)
	}
	tb.Skip(reason)
}

func notUnit(tb testing.TB) {
	tb.Helper()
	if os.Getenv("COFFER_TEST_TIER") == "unit" {
		tb.Skip("COFFER_TEST_TIER=unit: tests that need root or a VM are not run")
	}
}
