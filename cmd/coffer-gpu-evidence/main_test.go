//go:build nvml

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/guestpull/attest/nvgpu"
)

// TestMain is the program itself where this one is started as it would be.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && !strings.HasPrefix(os.Args[1], "-") {
		main()
	}
	os.Exit(m.Run())
}

// The program with the real library code of NVIDIA's, on a machine where that finds nothing to load, gives an answer and not up.
func TestProgramWithoutDriver(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	client := nvgpu.New(nvgpu.Options{Program: self, Library: filepath.Join(t.TempDir(), "libnvidia-ml.so.1"), Start: func(cmd *exec.Cmd) (int, <-chan int, error) {
		if err := cmd.Start(); err != nil {
			return 0, nil, err
		}
		exit := make(chan int, 1)
		go func() {
			_ = cmd.Wait()
			exit <- cmd.ProcessState.ExitCode()
		}()
		return cmd.Process.Pid, exit, nil
	}})
	if gpus, err := client.GPUs(t.Context()); !errdefs.IsFailedPrecondition(err) || gpus != nil {
		t.Errorf("got %+v, %v", gpus, err)
	}
	if err := client.SetReady(t.Context(), true); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("got %v", err)
	}
}
