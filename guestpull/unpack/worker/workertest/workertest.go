// Package workertest lets tests unpack layers in workers.
package workertest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

var build struct {
	once sync.Once
	file *os.File // stays open
	err  error
}

// Build builds a worker's program, once for all tests of a process, and returns its path, which is good while the process
// lives.
func Build() (string, error) {
	build.once.Do(func() {
		build.file, build.err = compile("github.com/coffer-project/coffer/guestpull/unpack/worker/workertest/program")
	})
	if build.err != nil {
		return "", build.err
	}
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), build.file.Fd()), nil
}

// Program is Build for a test.
func Program(tb testing.TB) string {
	tb.Helper()
	program, err := Build()
	if err != nil {
		tb.Fatal(err)
	}
	return program
}

// compile builds a program without cgo. The file has no name any more when it returns, so that nothing stays behind.
func compile(pkg string) (_ *os.File, retErr error) {
	dir, err := os.MkdirTemp("", "worker-")
	if err != nil {
		return nil, err
	}
	defer func() { retErr = errors.Join(retErr, os.RemoveAll(dir)) }()
	path := filepath.Join(dir, "program")
	cmd := exec.Command("go", "build", "-o", path, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build worker: %w: %s", err, out)
	}
	return os.Open(path)
}
