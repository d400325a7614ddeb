package nvgpu_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/guestpull/attest"
	"github.com/coffer-project/coffer/guestpull/attest/nvgpu"
	"github.com/coffer-project/coffer/guestpull/attest/nvgpu/helper"
	"github.com/coffer-project/coffer/proto/kbs"
)

var _ attest.DeviceAttester = (*nvgpu.Attester)(nil)

// play is the first argument of this test's program where it plays the program that is asked; what it is to do follows.
const play = "play:"

func TestMain(m *testing.M) {
	if len(os.Args) == 2 && strings.HasPrefix(os.Args[1], play) {
		os.Exit(program(strings.TrimPrefix(os.Args[1], play)))
	}
	os.Exit(m.Run())
}

// program is the real one over a driver in memory, or one that says text instead.
func program(do string) int {
	if text, ok := strings.CutPrefix(do, "say "); ok {
		fmt.Print(text)
		return 0
	}
	switch do {
	case "hang":
		select {}
	case "flood":
		for _, err := os.Stdout.Write(bytes.Repeat([]byte{'x'}, 1<<20)); err == nil; {
			_, err = os.Stdout.Write(bytes.Repeat([]byte{'x'}, 1<<20))
		}
		return 0
	case "crash":
		panic("crash")
	}
	return helper.Main(os.Stdin, os.Stdout, func() (helper.Library, func() error, error) {
		if do == "no driver" {
			return nil, nil, fmt.Errorf("no driver\x1b[31m: %w", errdefs.ErrFailedPrecondition)
		}
		return driver{dir: do}, func() error { return nil }, nil
	})
}

// driver has two GPUs, which report the nonce. Files in dir change it: "silent" names the GPU that gives no report, "old" one that cannot
// attest, and "ready" keeps the ready state.
type driver struct{ dir string }

func (d driver) file(name string) string {
	raw, err := os.ReadFile(filepath.Join(d.dir, name))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		panic(err)
	}
	return string(raw)
}

func (d driver) GPUs() ([]nvgpu.GPU, error) {
	gpus := []nvgpu.GPU{
		{Index: 0, UUID: "GPU-0", Name: "NVIDIA H100 80GB HBM3", Arch: kbs.NVIDIAHopper, Address: "0000:01:00.0"},
		{Index: 1, UUID: "GPU-1", Name: "NVIDIA B200", Arch: kbs.NVIDIABlackwell, Address: "0000:02:00.0"},
	}
	for i := range gpus {
		if gpus[i].UUID == d.file("old") {
			gpus[i].Arch = ""
		}
	}
	return gpus, nil
}

func (d driver) State() (nvgpu.State, error) {
	return nvgpu.State{Mode: nvgpu.ModeOn, MultiGPU: nvgpu.MultiGPUNone, Production: true, Ready: d.file("ready") == "true", Driver: "550.144.03"}, nil
}

func (d driver) Report(g nvgpu.GPU, nonce [kbs.NVIDIANonce]byte) (report, chain []byte, err error) {
	if g.UUID == d.file("silent") {
		return nil, nil, fmt.Errorf("no report: %w", errdefs.ErrUnavailable)
	}
	return append([]byte(g.UUID), nonce[:]...), []byte("chain"), nil
}

func (d driver) SetReady(ready bool) error {
	return os.WriteFile(filepath.Join(d.dir, "ready"), fmt.Append(nil, ready), 0o600)
}

// client asks this test's own program, which does as told. After the test no process of it may be left.
func client(t *testing.T, do string) *nvgpu.Client {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return nvgpu.New(nvgpu.Options{Program: self, Library: play + do, Start: func(cmd *exec.Cmd) (int, <-chan int, error) {
		if err := cmd.Start(); err != nil {
			return 0, nil, err
		}
		exit, gone := make(chan int, 1), make(chan struct{})
		go func() {
			defer close(gone)
			_ = cmd.Wait()
			exit <- cmd.ProcessState.ExitCode()
		}()
		t.Cleanup(func() { <-gone })
		return cmd.Process.Pid, exit, nil
	}})
}

func TestQuestions(t *testing.T) {
	dir := t.TempDir()
	c := client(t, dir)
	gpus, err := c.GPUs(t.Context())
	if err != nil || len(gpus) != 2 || gpus[1].Address != "0000:02:00.0" || gpus[1].Arch != kbs.NVIDIABlackwell {
		t.Fatalf("got %+v, %v", gpus, err)
	}
	for _, ready := range []bool{true, false, true} {
		if err := c.SetReady(t.Context(), ready); err != nil {
			t.Fatal(err)
		}
		if state, err := c.State(t.Context()); err != nil || state.Ready != ready || state.Mode != nvgpu.ModeOn || state.Driver != "550.144.03" {
			t.Errorf("got %+v, %v", state, err)
		}
	}
	nonce := bytes.Repeat([]byte{7}, kbs.NVIDIANonce)
	evidence, err := c.Evidence(t.Context(), nonce)
	if err != nil || len(evidence.Devices) != 2 {
		t.Fatalf("got %+v, %v", evidence, err)
	}
	for i, d := range evidence.Devices {
		report, chain, err := d.Decode()
		if err != nil || string(report) != fmt.Sprintf("GPU-%d%s", i, nonce) || string(chain) != "chain" {
			t.Errorf("GPU %d: got %q %q, %v", i, report, chain, err)
		}
	}
	if _, err := c.Evidence(t.Context(), nonce[1:]); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("short nonce: %v", err)
	}
}

// All GPUs or none: an attester never hands out evidence of some of them.
func TestAttester(t *testing.T) {
	for name, tc := range map[string]struct {
		count int
		files map[string]string
		want  error
	}{
		"all":                 {2, nil, nil},
		"one more on the bus": {3, nil, errdefs.ErrFailedPrecondition},
		"one gives none":      {2, map[string]string{"silent": "GPU-1"}, errdefs.ErrUnavailable},
		"one cannot attest":   {2, map[string]string{"old": "GPU-0"}, errdefs.ErrNotImplemented},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for file, text := range tc.files {
				if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			raw, err := nvgpu.NewAttester(client(t, dir), tc.count).Evidence(t.Context(), bytes.Repeat([]byte{9}, 48))
			if !errors.Is(err, tc.want) {
				t.Fatalf("got %v", err)
			}
			var evidence kbs.NVIDIAEvidence
			if err == nil {
				if err := json.Unmarshal(raw, &evidence); err != nil || len(evidence.Devices) != 2 {
					t.Errorf("got %s, %v", raw, err)
				}
			} else if raw != nil {
				t.Errorf("an error, but also %s", raw)
			}
		})
	}
}

// A program that misbehaves in any way is an error, never an answer, and never keeps anybody waiting.
func TestHostilePrograms(t *testing.T) {
	const gpu = `{"index":0,"uuid":"GPU-0","name":"H100","arch":"HOPPER","address":"0000:01:00.0"}`
	for name, do := range map[string]string{
		"crash":            "crash",
		"flood":            "flood",
		"silence":          "say ",
		"no line end":      `say {"version":1,"gpus":[]}`,
		"no JSON":          "say hello\n",
		"other version":    "say {\"version\":2,\"gpus\":[]}\n",
		"no answer":        "say {\"version\":1}\n",
		"other answer":     "say {\"version\":1,\"done\":true}\n",
		"two answers":      "say {\"version\":1,\"gpus\":[],\"done\":true}\n",
		"failed and not":   "say {\"version\":1,\"gpus\":[],\"failure\":{\"class\":\"unavailable\",\"message\":\"\"}}\n",
		"unknown class":    "say {\"version\":1,\"failure\":{\"class\":\"x\",\"message\":\"\"}}\n",
		"unknown member":   "say {\"version\":1,\"gpus\":[],\"extra\":1}\n",
		"member twice":     "say {\"version\":1,\"version\":1,\"gpus\":[]}\n",
		"same GPU twice":   "say {\"version\":1,\"gpus\":[" + gpu + "," + strings.Replace(gpu, `:0,`, `:1,`, 1) + "]}\n",
		"path as address":  "say {\"version\":1,\"gpus\":[" + strings.Replace(gpu, "0000:01:00.0", "../../x", 1) + "]}\n",
		"escape in a name": "say {\"version\":1,\"gpus\":[" + strings.Replace(gpu, "H100", `\u001b[31m`, 1) + "]}\n",
		"unknown arch":     "say {\"version\":1,\"gpus\":[" + strings.Replace(gpu, "HOPPER", "VOLTA", 1) + "]}\n",
		"wrong index":      "say {\"version\":1,\"gpus\":[" + strings.Replace(gpu, `:0,`, `:5,`, 1) + "]}\n",
	} {
		t.Run(name, func(t *testing.T) {
			if gpus, err := client(t, do).GPUs(t.Context()); !errors.Is(err, errdefs.ErrUnavailable) || gpus != nil {
				t.Errorf("got %+v, %v", gpus, err)
			}
		})
	}
	t.Run("hangs", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		c := client(t, "hang")
		failed := make(chan error)
		go func() { failed <- c.SetReady(ctx, true) }()
		cancel()
		if err := <-failed; !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("missing", func(t *testing.T) {
		c := nvgpu.New(nvgpu.Options{Program: filepath.Join(t.TempDir(), "none"), Start: func(cmd *exec.Cmd) (int, <-chan int, error) { return 0, nil, cmd.Start() }})
		if _, err := c.State(t.Context()); !errors.Is(err, errdefs.ErrUnavailable) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("no driver", func(t *testing.T) {
		if _, err := client(t, "no driver").GPUs(t.Context()); !errors.Is(err, errdefs.ErrFailedPrecondition) || strings.ContainsRune(err.Error(), 0x1b) {
			t.Errorf("got %q", err)
		}
	})
}

func TestHelperRefusesQuestions(t *testing.T) {
	nonce := `"` + strings.Repeat("A", 43) + `="`
	for name, tc := range map[string]struct {
		question string
		class    string
	}{
		"good":            {`{"version":1,"op":"evidence","nonce":` + nonce + `}`, ""},
		"no line":         {"", "invalid-argument"},
		"too long":        {strings.Repeat(" ", nvgpu.MaxQuestion), "invalid-argument"},
		"no JSON":         {"hello", "invalid-argument"},
		"other version":   {`{"version":2,"op":"gpus"}`, "invalid-argument"},
		"unknown":         {`{"version":1,"op":"reset"}`, "not-implemented"},
		"unknown member":  {`{"version":1,"op":"gpus","index":1}`, "invalid-argument"},
		"no nonce":        {`{"version":1,"op":"evidence"}`, "invalid-argument"},
		"short nonce":     {`{"version":1,"op":"evidence","nonce":"AAAA"}`, "invalid-argument"},
		"nonce for none":  {`{"version":1,"op":"gpus","nonce":` + nonce + `}`, "invalid-argument"},
		"ready for other": {`{"version":1,"op":"gpus","ready":true}`, "invalid-argument"},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			end := "\n"
			if tc.question == "" {
				end = ""
			}
			code := helper.Main(strings.NewReader(tc.question+end), &out, func() (helper.Library, func() error, error) {
				return driver{dir: t.TempDir()}, func() error { return nil }, nil
			})
			var a nvgpu.Answer
			if err := json.Unmarshal(out.Bytes(), &a); err != nil || code != 0 || a.Version != nvgpu.Version {
				t.Fatalf("status %d, got %s, %v", code, &out, err)
			}
			if tc.class == "" && a.Evidence == nil || tc.class != "" && (a.Failure == nil || a.Failure.Class != tc.class) {
				t.Errorf("got %s", &out)
			}
		})
	}
}
