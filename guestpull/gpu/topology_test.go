package gpu

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

// function is a PCI function of a fake machine.
type function struct{ vendor, device, class, productData string }

// What the machines consist of. The first four have the identifiers of real devices.
var (
	h100   = function{"0x10de", "0x2330", "0x030200", ""}
	h200   = function{"0x10de", "0x2335", "0x030200", ""}
	b200   = function{"0x10de", "0x2901", "0x030200", ""}
	rtx    = function{"0x10de", "0x2bb5", "0x030000", ""}
	audio  = function{"0x10de", "0x22e8", "0x040300", ""}
	nvs    = function{"0x10de", "0x22a3", "0x068000", ""}
	bridge = function{"0x15b3", "0x1021", "0x020700", "\x82\x10\x00ConnectX-7 card\x90\x10\x00V3\x06SW_MNG"}
	card   = function{"0x15b3", "0x1021", "0x020000", "\x82\x10\x00ConnectX-7 card\x90\x10\x00V3\x06NOTHIN"}
	disk   = function{"0x1af4", "0x1042", "0x010000", ""}
)

// machine makes a folder like the kernel's of PCI devices.
func machine(t *testing.T, functions ...function) string {
	t.Helper()
	dir := t.TempDir()
	for i, f := range functions {
		device := filepath.Join(dir, fmt.Sprintf("0000:%02x:00.0", i))
		if err := os.Mkdir(device, 0o755); err != nil {
			t.Fatal(err)
		}
		files := map[string]string{"vendor": f.vendor + "\n", "device": f.device + "\n", "class": f.class + "\n"}
		if f.productData != "" {
			files["vpd"] = f.productData
		}
		for name, text := range files {
			if err := os.WriteFile(filepath.Join(device, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	return dir
}

func times(n int, f function) []function {
	out := make([]function, n)
	for i := range out {
		out[i] = f
	}
	return out
}

func join(lists ...[]function) (out []function) {
	for _, list := range lists {
		out = append(out, list...)
	}
	return out
}

func TestDetect(t *testing.T) {
	for name, tc := range map[string]struct {
		functions []function
		want      Topology
		wantErr   error
	}{
		"no GPU":              {[]function{disk, card}, Topology{ModeNone, 0, 0, 0}, nil},
		"single H200":         {[]function{disk, h200}, Topology{ModeGPU, 1, 0, 0}, nil},
		"RTX Pro 6000":        {[]function{rtx, audio}, Topology{ModeGPU, 1, 0, 0}, nil},
		"H100 with a network": {[]function{h100, card}, Topology{ModeGPU, 1, 0, 0}, nil},
		"four GPUs alone":     {times(4, h100), Topology{ModeGPU, 4, 0, 0}, nil},
		"HGX H100":            {join(times(8, h100), times(4, nvs)), Topology{ModeNVL4, 8, 4, 0}, nil},
		"HGX B200":            {join(times(8, b200), times(4, bridge), times(4, card)), Topology{ModeNVL5, 8, 0, 4}, nil},
		"switches for others": {times(4, nvs), Topology{ModeServiceNVL4, 0, 4, 0}, nil},
		"bridges for others":  {times(4, bridge), Topology{ModeServiceNVL5, 0, 0, 4}, nil},
		"part of an HGX":      {join(times(4, h100), times(4, nvs)), Topology{"", 4, 4, 0}, errdefs.ErrFailedPrecondition},
		"a switch missing":    {join(times(8, h100), times(3, nvs)), Topology{"", 8, 3, 0}, errdefs.ErrFailedPrecondition},
		"both generations":    {join(times(8, h100), times(4, nvs), times(4, bridge)), Topology{"", 8, 4, 4}, errdefs.ErrFailedPrecondition},
		"a bridge missing":    {join(times(8, b200), times(3, bridge)), Topology{"", 8, 0, 3}, errdefs.ErrFailedPrecondition},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Detect(machine(t, tc.functions...))
			if !errors.Is(err, tc.wantErr) || got != tc.want {
				t.Fatalf("got %+v, %v", got, err)
			}
			if numbers := fmt.Sprintf("%d GPUs, %d NVSwitches and %d NVLink bridges", got.GPUs, got.Switches, got.Bridges); err != nil && !strings.Contains(err.Error(), numbers) {
				t.Errorf("error does not tell what is there: %v", err)
			}
		})
	}
	if got, err := Detect(filepath.Join(t.TempDir(), "none")); err != nil || got.Mode != ModeNone {
		t.Errorf("a machine without PCI: %+v, %v", got, err)
	}
}
