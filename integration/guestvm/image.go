// Package guestvm boots guests in emulated VMs for tests that are the host themselves: they speak to the guest over its
// control channel, and read its console.
package guestvm

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	"github.com/coffer-project/coffer/integration/require"
	"github.com/coffer-project/coffer/owner/guestimage"
)

// Image is a guest image whose PID 1 is a program of this repository. It is built when the first test asks for it.
type Image struct {
	program string
	once    sync.Once
	dir     string
	err     error
}

// NewImage takes the program's folder, relative to the repository.
func NewImage(program string) *Image { return &Image{program: program} }

// Dir needs what VMs and images need, and returns the folder with the image's files.
func (i *Image) Dir(tb testing.TB) string {
	tb.Helper()
	require.VM(tb)
	kernel, runc := require.Cached(tb, "kernel/linux-image-*.deb"), require.Cached(tb, "bin/runc")
	i.once.Do(func() { i.err = i.build(kernel, runc) })
	if i.err != nil {
		tb.Fatal(i.err)
	}
	return i.dir
}

// Remove removes the files. TestMain calls it after the tests.
func (i *Image) Remove() {
	if i.dir != "" {
		os.RemoveAll(i.dir)
	}
}

func (i *Image) build(kernel, runc string) (err error) {
	_, file, _, _ := runtime.Caller(0)
	repository := filepath.Dir(filepath.Dir(filepath.Dir(file)))
	if err := touchSources(repository, i.program); err != nil {
		return err
	}
	if i.dir, err = os.MkdirTemp("", "guestvm"); err != nil {
		return err
	}
	in := guestimage.Inputs{Kernel: kernel, Runc: runc, Agent: filepath.Join(i.dir, "init"), Unpacker: filepath.Join(i.dir, "unpack")}
	for file, program := range map[string]string{in.Agent: i.program, in.Unpacker: "cmd/coffer-unpack"} {
		build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", file, "./"+program)
		build.Dir, build.Env = repository, append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			return fmt.Errorf("build %s: %w: %s", program, err, out)
		}
	}
	_, _, err = guestimage.Build(context.Background(), in, i.dir)
	return err
}

// touchSources looks at the program's sources: the go command notes that, and does not take an earlier result for this
// one when they have changed, which it cannot see otherwise because the program is built by the test itself.
func touchSources(repository, program string) error {
	for _, dir := range []string{program, "guestpull", "proto"} {
		err := filepath.WalkDir(filepath.Join(repository, dir), func(path string, _ fs.DirEntry, err error) error {
			if err == nil && filepath.Ext(path) == ".go" {
				_, err = os.Stat(path)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}
