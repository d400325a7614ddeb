package gpu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coffer-project/coffer/guestpull/attest"
	"github.com/coffer-project/coffer/guestpull/attest/nvgpu"
	"github.com/coffer-project/coffer/guestpull/container/reap"
	"github.com/coffer-project/coffer/guestpull/extension"
)

// kernel is the release of the fake machine's kernel.
const kernel = "6.12.0-test"

// guest is a fake machine with an extension whose programs are this test's, see TestMain, and which notes what is done to it.
type guest struct {
	t       *testing.T
	root    string
	did     []string
	options Options
	state   State
	refuse  error // of the broker

	noBroker    bool
	unprotected error // what a guest in a TEE says
}

func newGuest(t *testing.T, functions ...function) *guest {
	t.Helper()
	g := &guest{t: t, root: t.TempDir(), state: State{Confidential: true}}
	g.write("proc/devices", "Character devices:\n  1 mem\n195 nvidia\n510 nvidia-uvm\n511 nvidia-nvswitch\n\nBlock devices:\n254 virtblk\n")
	g.write("proc/sys/kernel/modules_disabled", "0")
	g.write("sys/module/firmware_class/parameters/path", "")
	g.write("dev/log", "") // somebody else listens
	g.write("dev/kmsg", "")
	g.write("tmp/x", "")
	must(t, os.MkdirAll(filepath.Join(g.root, "sys/bus/pci"), 0o755))
	must(t, os.Symlink(machine(t, functions...), filepath.Join(g.root, "sys/bus/pci/devices")))
	n := 0
	for _, f := range functions {
		if f.vendor == vendorNVIDIA && strings.HasPrefix(f.class, classDisplay) {
			g.write(fmt.Sprintf("proc/driver/nvidia/gpus/0000:%02x:00.0/information", n), fmt.Sprintf("Model: test\nDevice Minor: \t %d\n", n))
			n++
		}
	}
	g.write("sys/class/infiniband/mlx5_0/ports/1/cap_mask", "0x00000400\n") // not to be managed
	g.write("sys/class/infiniband/mlx5_1/ports/1/cap_mask", "0xa651e84a\n")
	g.write("sys/class/infiniband/mlx5_1/ports/1/gids/0", "fe80:0000:0000:0000:b83f:d203:0082:3a4e\n")
	g.extension()
	e, err := extension.Open(g.path("run/kata-extensions/gpu"))
	must(t, err)
	g.options = Options{
		Root: g.root, Start: reap.New().Start, Kernel: kernel, Params: DefaultParams(), Extensions: []*extension.Extension{e}, Driver: g,
		Evidence: func(gpus int) attest.DeviceAttester { return nvgpu.NewAttester(nil, gpus) },
		Insert: func(file, params string) error {
			g.note("insert %s %s", filepath.Base(file), params)
			return nil
		},
		MakeNode: func(path string, major, minor uint32) error {
			g.note("node %s %d:%d", strings.TrimPrefix(path, g.root), major, minor)
			return nil
		},
	}
	return g
}

// extension lays the driver's files out. Programs are links to this test's program.
func (g *guest) extension() {
	self, err := os.Executable()
	must(g.t, err)
	const ext = "run/kata-extensions/gpu/"
	for _, program := range []string{persistenced, smi, hostEngine, exporter, toolkit, fabricManager, subnetManager} {
		must(g.t, os.MkdirAll(filepath.Dir(g.path(ext+program)), 0o755))
		must(g.t, os.Symlink(self, g.path(ext+program)))
	}
	g.write(ext+fabricSettings, "# settings\nFABRIC_MODE=9\nLOG_LEVEL=4\n")
	g.write(ext+"lib/firmware/nvidia/gsp.bin", "")
	g.write(ext+"usr/lib/x86_64-linux-gnu/libcuda.so.1", "")
	g.write(ext+"lib/modules/"+kernel+"/modules.dep", "extra/nvidia.ko.zst: kernel/video.ko kernel/base.ko\nextra/nvidia-uvm.ko: extra/nvidia.ko.zst kernel/video.ko kernel/base.ko\n")
	g.write("lib/modules/"+kernel+"/modules.dep", "kernel/ib_umad.ko:\nkernel/mlx5_ib.ko.xz: kernel/mlx5_core.ko.xz\n")
}

func (g *guest) path(name string) string { return filepath.Join(g.root, name) }

func (g *guest) write(name, text string) {
	g.t.Helper()
	must(g.t, os.MkdirAll(filepath.Dir(g.path(name)), 0o755))
	must(g.t, os.WriteFile(g.path(name), []byte(text), 0o644))
}

func (g *guest) read(name string) string {
	g.t.Helper()
	data, err := os.ReadFile(g.path(name))
	must(g.t, err)
	return string(data)
}

func (g *guest) note(format string, args ...any) { g.did = append(g.did, fmt.Sprintf(format, args...)) }

// State implements Driver.
func (g *guest) State(context.Context) (State, error) { return g.state, nil }

// SetReady implements Driver.
func (g *guest) SetReady(context.Context) error {
	g.note("ready")
	g.state.Ready = true
	return nil
}

// Attest implements Attester.
func (g *guest) Attest(context.Context) error {
	g.note("attest")
	return g.refuse
}

// calls are the programs that ran, with their arguments, in order, once there are n.
func (g *guest) calls(n int) []string {
	g.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; {
		calls := g.callsYet()
		if len(calls) >= n || time.Now().After(deadline) {
			return calls
		}
		time.Sleep(10 * time.Millisecond) // a program that nobody waits for says nothing when it has started
	}
}

func (g *guest) callsYet() []string {
	g.t.Helper()
	text, err := os.ReadFile(g.path("run/kata-extensions/gpu/calls"))
	if !errors.Is(err, os.ErrNotExist) {
		must(g.t, err)
	}
	return strings.Split(strings.TrimSpace(strings.ReplaceAll(string(text), g.root, "")), "\n")
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func run(t *testing.T, g *guest) *Service {
	t.Helper()
	s := New(time.Minute)
	s.Run(t.Context(), g.options)
	if g.noBroker {
		s.AttestBy(nil, g.unprotected)
	} else {
		s.AttestBy(g, g.unprotected)
	}
	return s
}

func container() *specs.Spec {
	return &specs.Spec{Process: &specs.Process{}, Linux: &specs.Linux{}}
}

const (
	ctk        = "nvidia-ctk -d cdi generate --output=/run/cdi/nvidia.yaml --driver-root=/run/kata-extensions/gpu --dev-root= --nvidia-cdi-hook-path=/run/kata-extensions/gpu/bin/nvidia-cdi-hook"
	persist    = "nvidia-persistenced --verbose --uvm-persistence-mode"
	fm         = "nv-fabricmanager -c /run/fabricmanager.cfg"
	guid       = " -g 0xb83fd20300823a4e"
	nvlsmStart = "nvlsm -F /run/kata-extensions/gpu/usr/share/nvidia/nvlsm/nvlsm.conf" + guid + " -f stdout"
)

func TestRun(t *testing.T) {
	base := []string{"insert base.ko ", "insert video.ko ", "insert nvidia.ko.zst "}
	uvm := append(slices.Clone(base), "insert nvidia-uvm.ko ")
	for name, tc := range map[string]struct {
		functions []function
		change    func(*guest)
		calls     []string
		did       []string // the first that is done
		settings  string   // of the fabric manager
	}{
		"single H200": {
			functions: []function{h200}, calls: []string{persist, ctk},
			did: append([]string{"insert base.ko ", "insert video.ko ", "insert nvidia.ko.zst NVreg_NvLinkDisable=1"}, append(uvm, "node /dev/nvidiactl 195:255", "node /dev/nvidia0 195:0", "node /dev/nvidia-uvm 510:0", "node /dev/nvidia-uvm-tools 510:1")...),
		},
		"clocks and monitor": {
			functions: []function{rtx},
			change: func(g *guest) {
				g.options.Params = Params{CoreClock: 1500, MemoryClock: 1593, PowerLimit: 300, DCGM: true}
			},
			calls: []string{"nvidia-persistenced --verbose", "nvidia-smi -lmc 1593", "nvidia-smi -lgc 1500", "nvidia-smi -pl 300",
				"nv-hostengine --service-account nvidia-dcgm --home-dir /tmp", "dcgm-exporter -k -f /run/kata-extensions/gpu/etc/dcgm-exporter/default-counters.csv", ctk},
		},
		"HGX H100": {
			functions: join(times(8, h100), times(4, nvs)), calls: []string{fm, persist, ctk}, did: append(slices.Clone(base), uvm...),
			settings: "# settings\nFABRIC_MODE=0\nLOG_LEVEL=4\nPARTITION_RAIL_POLICY=greedy\n",
		},
		"HGX B200": {
			functions: join(times(8, b200), times(4, bridge)), calls: []string{nvlsmStart, fm + guid, persist, ctk},
			did:      append([]string{"insert ib_umad.ko ", "insert mlx5_core.ko.xz ", "insert mlx5_ib.ko.xz "}, base...),
			settings: "# settings\nFABRIC_MODE=0\nLOG_LEVEL=4\nPARTITION_RAIL_POLICY=symmetric\n",
		},
		"switches for others": {
			functions: times(4, nvs), calls: []string{fm}, did: base,
			settings: "# settings\nFABRIC_MODE=1\nLOG_LEVEL=4\nPARTITION_RAIL_POLICY=greedy\n",
		},
		"no GPU": {functions: []function{disk}, calls: []string{""}},
		"set up by another init": {
			functions: []function{h200}, change: func(g *guest) { g.options.Inherited = true }, calls: []string{""},
		},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGuest(t, tc.functions...)
			if tc.change != nil {
				tc.change(g)
			}
			s := run(t, g)
			must(t, s.result.err)
			// Programs that stay note their start beside the others.
			if got := g.calls(len(tc.calls)); !sameOrder(got, tc.calls) {
				t.Errorf("calls:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(tc.calls, "\n"))
			}
			if len(g.did) < len(tc.did) || !slices.Equal(g.did[:len(tc.did)], tc.did) {
				t.Errorf("did %q,\nwant %q first", g.did, tc.did)
			}
			if slices.Contains(g.did, "ready") || slices.Contains(g.did, "attest") {
				t.Error("GPUs became ready with no container that wants one")
			}
			if tc.settings != "" && g.read(fabricCopy) != tc.settings {
				t.Errorf("settings %q", g.read(fabricCopy))
			}
			wantLock := "1\n"
			if name == "no GPU" || g.options.Inherited {
				wantLock = "0"
			} else if g.read(firmwarePath) != g.path("run/kata-extensions/gpu/lib/firmware") {
				t.Errorf("firmware is in %q", g.read(firmwarePath))
			}
			if got := g.read(modulesDisabled); got != wantLock {
				t.Errorf("modules_disabled is %q, want %q", got, wantLock)
			}
		})
	}
}

// sameOrder compares calls, of which nv-hostengine and dcgm-exporter start beside what follows, as nvlsm does.
func sameOrder(got, want []string) bool {
	early := func(c string) bool {
		return strings.HasPrefix(c, "nv-host") || strings.HasPrefix(c, "dcgm") || strings.HasPrefix(c, "nvlsm")
	}
	rest := func(list []string) []string { return slices.DeleteFunc(slices.Clone(list), early) }
	a, b := slices.Clone(got), slices.Clone(want)
	slices.Sort(a)
	slices.Sort(b)
	return slices.Equal(a, b) && slices.Equal(rest(got), rest(want))
}

func TestReadyAfterAttestation(t *testing.T) {
	g := newGuest(t, h200)
	s := run(t, g)
	must(t, s.result.err)
	if devices, err := s.Devices(t.Context()); err != nil || len(devices) != 1 || devices[0].Device() != "nvidia" {
		t.Errorf("evidence of %v, %v", devices, err)
	}
	g.did = nil
	g.refuse = fmt.Errorf("not believed: %w", errdefs.ErrPermissionDenied)
	one := container()
	if err := s.Inject(t.Context(), one, []string{"nvidia.com/gpu=0"}); !errors.Is(err, errdefs.ErrPermissionDenied) {
		t.Errorf("refused by the broker: %v", err)
	}
	if !slices.Equal(g.did, []string{"attest"}) || g.state.Ready || len(one.Linux.Devices) > 0 {
		t.Errorf("refused by the broker, and still: %q, %+v", g.did, one)
	}
	g.refuse = nil
	for range 2 {
		must(t, s.Inject(t.Context(), one, []string{"nvidia.com/gpu=0"}))
	}
	if !slices.Equal(g.did, []string{"attest", "attest", "ready"}) {
		t.Errorf("did %q", g.did)
	}
	if one.Process.Env[0] != "NVIDIA_VISIBLE_DEVICES=void" || one.Linux.Devices[0].Path != "/dev/nvidia0" {
		t.Errorf("container %+v", one)
	}
	if err := s.Inject(t.Context(), container(), []string{"nvidia.com/gpu=7"}); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("GPU that is not there: %v", err)
	}
}

func TestNotConfidential(t *testing.T) {
	for name, tc := range map[string]struct {
		change  func(*guest)
		wantErr error
	}{
		"no broker":                 {func(g *guest) { g.noBroker = true }, errdefs.ErrFailedPrecondition},
		"no broker, not protected":  {func(g *guest) { g.noBroker, g.state = true, State{} }, nil},
		"nothing to ask the driver": {func(g *guest) { g.options.Driver = nil }, nil},
		"not protected in a TEE":    {func(g *guest) { g.unprotected, g.state = errdefs.ErrPermissionDenied, State{} }, errdefs.ErrPermissionDenied},
		"nothing to ask in a TEE":   {func(g *guest) { g.unprotected, g.options.Driver = errdefs.ErrPermissionDenied, nil }, errdefs.ErrPermissionDenied},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGuest(t, h200)
			tc.change(g)
			s := run(t, g)
			if err := s.Inject(t.Context(), container(), []string{"nvidia.com/gpu=0"}); !errors.Is(err, tc.wantErr) {
				t.Errorf("got %v, want %v", err, tc.wantErr)
			}
			if slices.Contains(g.did, "ready") {
				t.Error("GPUs became ready without attestation")
			}
			if devices, err := s.Devices(t.Context()); err != nil || (len(devices) > 0) != errors.Is(tc.wantErr, errdefs.ErrFailedPrecondition) {
				t.Errorf("evidence of %v, %v", devices, err)
			}
		})
	}
}

func TestDutyFails(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*guest)
		want   string // the error has it
		class  error
	}{
		"topology": {func(g *guest) {
			must(g.t, os.RemoveAll(g.path("sys/bus/pci/devices")))
			must(g.t, os.Symlink(machine(g.t, join(times(4, h100), times(4, nvs))...), g.path("sys/bus/pci/devices")))
		}, "GPU duty topology: 4 GPUs, 4 NVSwitches and 0 NVLink bridges", errdefs.ErrFailedPrecondition},
		"no extension":     {func(g *guest) { g.options.Extensions = nil }, "GPU duty modules: kernel module nvidia is not in", errdefs.ErrNotFound},
		"another kernel":   {func(g *guest) { g.options.Kernel = "6.1" }, "the extension must be made for this guest's kernel", errdefs.ErrNotFound},
		"fewer GPUs":       {func(g *guest) { must(g.t, os.RemoveAll(g.path("proc/driver/nvidia/gpus/0000:00:00.0"))) }, "GPU duty device-nodes: the driver has taken 0 of 1 GPUs", errdefs.ErrFailedPrecondition},
		"program fails":    {func(g *guest) { g.options.Params.PowerLimit = 99999 }, `GPU duty clocks: nvidia-smi ended with status 3: "Provided power limit 99999.00 W is not a valid power limit"`, errdefs.ErrUnavailable},
		"program missing":  {func(g *guest) { must(g.t, os.Remove(g.path("run/kata-extensions/gpu/bin/nvidia-ctk"))) }, "GPU duty cdi: ", errdefs.ErrNotFound},
		"daemon ends":      {func(g *guest) { g.write("run/kata-extensions/gpu/persistenced-fails", "") }, `GPU duty persistence: nvidia-persistenced ended with status 1: "failed to open device"`, errdefs.ErrUnavailable},
		"evil description": {func(g *guest) { g.write("run/kata-extensions/gpu/cdi-evil", "") }, `it runs "/bin/sh"`, errdefs.ErrFailedPrecondition},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGuest(t, h200)
			tc.change(g)
			s := run(t, g)
			err := s.Inject(t.Context(), container(), []string{"nvidia.com/gpu=0"})
			if !errors.Is(err, tc.class) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v", err)
			}
			if slices.Contains(g.did, "attest") || slices.Contains(g.did, "ready") {
				t.Errorf("went on: %q", g.did)
			}
			if name != "topology" && g.read(modulesDisabled) != "1\n" {
				t.Error("modules can still be loaded")
			}
		})
	}
}

func TestInjectWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(time.Minute)
		if err := s.Inject(t.Context(), container(), []string{"nvidia.com/gpu=0"}); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "agent.cdi_timeout") {
			t.Errorf("duties that go on: %v", err)
		}
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		if err := s.Inject(gone, container(), []string{"nvidia.com/gpu=0"}); !errors.Is(err, context.Canceled) {
			t.Errorf("caller that left: %v", err)
		}
		s.Refuse(errdefs.ErrUnavailable)
		if err := s.Inject(t.Context(), container(), []string{"nvidia.com/gpu=0"}); !errors.Is(err, errdefs.ErrUnavailable) {
			t.Errorf("refused: %v", err)
		}
	})
}
