// Package launch tests what confidential guests are launched with, from a pod's configuration to QEMU's command line, and that all
// parties make the same of it: the shim, which launches, the guest, which compares, and the owner, who computes measurements. It
// boots nothing, for no TEE is needed to know what one would be told.
package launch

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coffer-project/coffer/guestpull/attest"
	"github.com/coffer-project/coffer/integration/require"
	"github.com/coffer-project/coffer/owner/appraise"
	"github.com/coffer-project/coffer/owner/measure"
	"github.com/coffer-project/coffer/proto/initdata"
	"github.com/coffer-project/coffer/proto/ovmf/ovmftest"
	"github.com/coffer-project/coffer/shim/config"
	"github.com/coffer-project/coffer/shim/plugin/driver"
	"github.com/coffer-project/coffer/shim/sandbox"
	"github.com/coffer-project/coffer/shim/tee"
	"github.com/coffer-project/coffer/shim/vm"
	"github.com/coffer-project/coffer/shim/vm/qemu"
	"github.com/coffer-project/coffer/shim/vm/qemu/qemutest"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// host is a machine that has every TEE, and the files in its map besides those that are really there.
type host map[string][]byte

func (h host) ReadFile(path string) ([]byte, error) {
	if content, ok := h[path]; ok {
		return content, nil
	}
	if strings.HasSuffix(path, "/sev_snp") || strings.HasSuffix(path, "/tdx") {
		return []byte("Y\n"), nil
	}
	return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
}

func (host) Stat(string) error { return nil }

func (host) SEV() tee.SEV { return tee.SEV{SNP: true, CBitPos: 51} }

// errSeen ends a start whose VM has been described.
var errSeen = errors.New("seen")

// describer is a driver that describes VMs instead of starting them.
type describer struct {
	*qemu.Driver
	seen *qemu.Description
}

func (d *describer) New(_ context.Context, config vm.Config) (vm.Instance, error) {
	*d.seen = d.Describe(config)
	return nil, errSeen
}

// start takes a pod through the shim as far as its VM, and returns what QEMU would be started with.
func start(t *testing.T, text string, annotations map[string]string) (*config.Config, qemu.Description) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/shim.toml", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	conf, err := config.Load(dir + "/shim.toml")
	if err != nil {
		t.Fatal(err)
	}
	state, scratch := conf.StateDir, conf.Scratch.Dir
	conf.StateDir, conf.Scratch.Dir = dir+"/s", dir
	firmware := ovmftest.AmdSev()
	if conf.TEE == config.TEETDX {
		firmware = ovmftest.TDX(nil)
	}
	var seen qemu.Description
	pod := sandbox.New(t.Context(), sandbox.Platform{
		LoadConfig: func(string) (*config.Config, error) { return conf, nil },
		NewDriver: func(c *config.Config) (vm.Driver, error) {
			d, err := driver.New(c)
			return &describer{Driver: d, seen: &seen}, err
		},
		HostDNS: func() (*cri.DNSConfig, error) { return new(cri.DNSConfig), nil },
		TEE:     host{conf.Hypervisor.Firmware: firmware},
	})
	request := sandbox.Request{ID: "pod-1", Bundle: dir, Config: &cri.PodSandboxConfig{Annotations: annotations}}
	if err := pod.Create(t.Context(), request); err != nil {
		t.Fatal(err)
	}
	if err := pod.Start(t.Context()); !errors.Is(err, errSeen) {
		t.Fatal(err)
	}
	if got, want := pod.Report().TEE, string(conf.TEE); got != want && (got != "" || conf.TEE != config.TEENone) {
		t.Errorf("the pod reports the TEE %q, not %q", got, want)
	}
	if err := pod.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	conf.StateDir, conf.Scratch.Dir = state, scratch
	for i, arg := range seen.Arguments {
		if at := strings.Index(arg, dir+"/s/"); at >= 0 { // the state directory's name depends on the bundle's
			rest := arg[at+len(dir+"/s/"):]
			seen.Arguments[i] = arg[:at] + state + "/POD" + rest[strings.IndexByte(rest, '/'):]
		}
	}
	return conf, seen
}

// document is a pod's initdata, with its digest's algorithm as asked for.
func document(t *testing.T, algorithm string) (raw []byte, annotation map[string]string) {
	t.Helper()
	raw = []byte("version = \"0.1.0\"\nalgorithm = \"" + algorithm + "\"\n\n[data]\n\"policy.rego\" = \"package agent_policy\"\n")
	text, err := initdata.EncodeAnnotation(raw)
	if err != nil {
		t.Fatal(err)
	}
	return raw, map[string]string{initdata.Annotation: text}
}

// option is the value of an option of QEMU's.
func option(t *testing.T, arguments []string, name string) string {
	t.Helper()
	at := slices.Index(arguments, name)
	if at < 0 {
		t.Fatalf("no %s in %q", name, arguments)
	}
	return arguments[at+1]
}

// guestObject is the object by which QEMU launches a guest confidentially.
func guestObject(t *testing.T, arguments []string) map[string]json.RawMessage {
	t.Helper()
	for _, arg := range arguments {
		var object map[string]json.RawMessage
		if strings.Contains(arg, `"id":"tee"`) && json.Unmarshal([]byte(arg), &object) == nil {
			return object
		}
	}
	t.Fatalf("no confidential guest in %q", arguments)
	return nil
}

// TestGolden pins the whole command line for each preset, and holds it against the installed QEMU.
func TestGolden(t *testing.T) {
	q := qemutest.Start(t, require.VM(t))
	_, annotations := document(t, "sha384")
	for _, preset := range config.Presets() {
		t.Run(preset, func(t *testing.T) {
			_, got := start(t, "preset = \""+preset+"\"\n", annotations)
			compare(t, filepath.Join("testdata", preset+".args"), got.Arguments)
			faults, checked := q.Faults(got.Arguments)
			for _, err := range faults {
				// What QEMU 10.0 lacks is told in shim/vm/qemu's tests.
				if !strings.Contains(err.Error(), "tdx-guest") || q.Has("tdx-guest") {
					t.Error(err)
				}
			}
			if checked < 8 {
				t.Errorf("only %d options were checked", checked)
			}
		})
	}
}

func compare(t *testing.T, path string, arguments []string) {
	t.Helper()
	got := strings.ReplaceAll(strings.Join(arguments, " "), " -", "\n-") + "\n"
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("got:\n%s\nwant:\n%s\n(go test -update rewrites it)", got, want)
	}
}

// launchedGuest is a TEE that attests the field it was launched with.
type launchedGuest struct {
	attest.Platform
	field []byte
}

func (g launchedGuest) InitDataField(context.Context) ([]byte, error) { return g.field, nil }

func (launchedGuest) TEE() string { return "launched" }

// TestInitdataIsBound: what the shim writes into the TEE's field is what guest and broker find there, cut and padded alike.
func TestInitdataIsBound(t *testing.T) {
	for name, tc := range map[string]struct {
		preset, field string
		size          int
	}{"snp": {"snp", "host-data", 32}, "tdx": {"tdx", "mrconfigid", 48}} {
		for _, algorithm := range []string{initdata.SHA256, initdata.SHA384, initdata.SHA512} {
			t.Run(name+" "+algorithm, func(t *testing.T) {
				raw, annotations := document(t, algorithm)
				_, got := start(t, "preset = \""+tc.preset+"\"\n", annotations)
				var field []byte
				if err := json.Unmarshal(guestObject(t, got.Arguments)[tc.field], &field); err != nil || len(field) != tc.size {
					t.Fatalf("%s of %d bytes, %v", tc.field, len(field), err)
				}
				_, sum, err := initdata.Digest(raw)
				if err != nil {
					t.Fatal(err)
				}
				if bound, err := attest.CheckInitData(t.Context(), launchedGuest{field: field}, sum); !bound || err != nil {
					t.Errorf("the guest finds another document: %v", err)
				}
				if err := (appraise.Evidence{InitDataDigest: sum}).CheckInitData(field); err != nil {
					t.Errorf("the broker: %v", err)
				}
				field[0] ^= 1
				if _, err := attest.CheckInitData(t.Context(), launchedGuest{field: field}, sum); err == nil {
					t.Error("the guest accepts another digest")
				}
			})
		}
	}
	// Without a document the field is empty, and the guest takes none from the host either.
	_, got := start(t, "preset = \"snp\"\n", nil)
	if _, has := guestObject(t, got.Arguments)["host-data"]; has {
		t.Error("host-data without a document")
	}
}

// guestParts are files that a guest is launched with, and the configuration that names them.
func guestParts(t *testing.T) (kernel, initrd []byte, text string) {
	t.Helper()
	dir := t.TempDir()
	kernel, initrd = append(make([]byte, 0x202), "HdrS"...), []byte("initrd")
	for name, content := range map[string][]byte{"vmlinuz": kernel, "initrd.cpio": initrd, "AMDSEV.fd": ovmftest.AmdSev()} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return kernel, initrd, "preset = \"snp\"\n[hypervisor]\nkernel = \"" + dir + "/vmlinuz\"\ninitrd = \"" + dir + "/initrd.cpio\"\nfirmware = \"" + dir + "/AMDSEV.fd\"\n"
}

// measured computes the launch digest from nothing but QEMU's command line and the files that it names, as the TEE would.
func measured(t *testing.T, arguments []string) string {
	t.Helper()
	guest := measure.SNPGuest{Cmdline: option(t, arguments, "-append"), Features: measure.SNPActive}
	for name, into := range map[string]*[]byte{"-bios": &guest.Firmware, "-kernel": &guest.Kernel, "-initrd": &guest.Initrd} {
		raw, err := os.ReadFile(option(t, arguments, name))
		if err != nil {
			t.Fatal(err)
		}
		*into = raw
	}
	var err error
	if guest.VCPUs, err = strconv.Atoi(option(t, arguments, "-smp")); err != nil {
		t.Fatal(err)
	}
	if guest.CPU, err = measure.CPUSignature(option(t, arguments, "-cpu")); err != nil {
		t.Fatal(err)
	}
	digest, err := guest.Digest()
	if err != nil {
		t.Fatal(err)
	}
	if string(guestObject(t, arguments)["kernel-hashes"]) != "true" {
		t.Error("QEMU is not told to measure the kernel")
	}
	return string(digest)
}

// TestOwnerComputesTheDigest: what `cofferctl launch` tells an owner leads to the very digest that the shim launches.
func TestOwnerComputesTheDigest(t *testing.T) {
	kernel, initrd, text := guestParts(t)
	_, annotations := document(t, "sha384")
	seen := map[string]string{}
	for name, tc := range map[string]struct {
		extra       string
		vcpus       uint32
		scratch     bool
		annotations map[string]string
	}{
		"default":    {"", 1, false, nil},
		"parameters": {"kernel_params = [\"mitigations=auto\"]\naccept_memory = \"eager\"\n", 1, false, nil},
		"processors": {"", 4, false, map[string]string{config.AnnotationVCPUs: "4"}},
		"scratch":    {"[scratch]\ndefault_mib = 64\n", 1, true, nil},
		"logging":    {"[guest]\nlog_level = \"debug\"\n", 1, false, nil},
	} {
		conf, got := start(t, text+tc.extra, tc.annotations)
		told, err := driver.Describe(conf, tc.vcpus, tc.scratch)
		if err != nil {
			t.Fatal(err)
		}
		cpu, err := measure.CPUSignature(told.CPU)
		if err != nil {
			t.Fatal(err)
		}
		want, err := measure.SNPGuest{
			Firmware: ovmftest.AmdSev(), Kernel: kernel, Initrd: initrd, Cmdline: told.KernelLine, VCPUs: int(tc.vcpus), CPU: cpu, Features: measure.SNPActive,
		}.Digest()
		if err != nil {
			t.Fatal(err)
		}
		digest := measured(t, got.Arguments)
		if !bytes.Equal([]byte(digest), want) {
			t.Errorf("%s: the owner computes %x, the shim launches %x", name, want, digest)
		}
		if other, twice := seen[digest]; twice {
			t.Errorf("%s and %s have one digest", name, other)
		}
		seen[digest] = name
	}
	// A pod's own document changes what reports carry beside the digest, and not the digest.
	if _, got := start(t, text, annotations); seen[measured(t, got.Arguments)] != "default" {
		t.Error("the launch digest depends on the initdata document")
	}
}
