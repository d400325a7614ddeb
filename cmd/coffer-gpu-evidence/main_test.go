//go:build nvml

package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/guestpull/attest/nvgpu"
	"github.com/coffer-project/coffer/proto/kbs"
)

// TestMain is the program itself where this one is started as it would be.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && !strings.HasPrefix(os.Args[1], "-") {
		main()
	}
	os.Exit(m.Run())
}

// ask returns a client of the program with a library.
func ask(t *testing.T, library string) *nvgpu.Client {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return nvgpu.New(nvgpu.Options{Program: self, Library: library, Start: func(cmd *exec.Cmd) (int, <-chan int, error) {
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
}

// The program with the real library code of NVIDIA's, on a machine where that finds nothing to load, gives an answer and not up.
func TestProgramWithoutDriver(t *testing.T) {
	client := ask(t, filepath.Join(t.TempDir(), "libnvidia-ml.so.1"))
	if gpus, err := client.GPUs(t.Context()); !errdefs.IsFailedPrecondition(err) || gpus != nil {
		t.Errorf("got %+v, %v", gpus, err)
	}
	if err := client.SetReady(t.Context(), true); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("got %v", err)
	}
}

// The whole way through C: the program loads a library by its path, finds NVIDIA's functions in it by their names, and reads what they
// write into NVIDIA's structures.
func TestProgramWithLibrary(t *testing.T) {
	dir := t.TempDir()
	header, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", "github.com/NVIDIA/go-nvml").Output()
	if err != nil {
		t.Fatal(err)
	}
	library := filepath.Join(dir, "libnvidia-ml.so.1")
	compile := exec.CommandContext(t.Context(), "gcc", "-shared", "-fPIC", "-I", filepath.Join(strings.TrimSpace(string(header)), "pkg", "nvml"),
		"-DREADY="+strconv.Quote(filepath.Join(dir, "ready")), "-o", library, "testdata/nvml.c")
	if out, err := compile.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	client := ask(t, library)
	gpus, err := client.GPUs(t.Context())
	want := []nvgpu.GPU{
		{Index: 0, UUID: "GPU-0", Name: "NVIDIA H100 80GB HBM3", Arch: kbs.NVIDIAHopper, Address: "0001:41:02.0"},
		{Index: 1, UUID: "GPU-1", Name: "NVIDIA H100 80GB HBM3", Arch: kbs.NVIDIAHopper, Address: "0001:42:02.0"},
	}
	if err != nil || !slices.Equal(gpus, want) {
		t.Fatalf("got %+v, %v", gpus, err)
	}
	for _, ready := range []bool{true, false} {
		if err := client.SetReady(t.Context(), ready); err != nil {
			t.Fatal(err)
		}
		want := nvgpu.State{Mode: nvgpu.ModeOn, MultiGPU: nvgpu.MultiGPUNVLink, Production: true, Ready: ready, Driver: "580.95.05"}
		if state, err := client.State(t.Context()); err != nil || state != want {
			t.Errorf("got %+v, %v", state, err)
		}
	}
	nonce := bytes.Repeat([]byte{7}, kbs.NVIDIANonce)
	evidence, err := client.Evidence(t.Context(), nonce)
	if err != nil || len(evidence.Devices) != 2 {
		t.Fatalf("got %+v, %v", evidence, err)
	}
	for i, d := range evidence.Devices {
		report, chain, err := d.Decode()
		wantReport := append(slices.Clip(nonce), bytes.Repeat([]byte{byte('a' + i)}, kbs.MaxNVIDIAReport-len(nonce))...)
		if err != nil || !bytes.Equal(report, wantReport) || string(chain) != fmt.Sprintf("chain %d", i) {
			t.Errorf("GPU %d: got %d bytes, %q, %v", i, len(report), chain, err)
		}
	}
}
