package tee

import (
	"bytes"
	"crypto/sha512"
	"errors"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/proto/ovmf/ovmftest"
	"github.com/coffer-project/coffer/shim/config"
)

// fakeHost is a machine of files that a test writes down.
type fakeHost struct {
	files map[string]string
	sev   SEV
}

func (f *fakeHost) ReadFile(path string) ([]byte, error) {
	text, ok := f.files[path]
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
	}
	return []byte(text), nil
}

func (f *fakeHost) Stat(path string) error {
	_, err := f.ReadFile(path)
	return err
}

func (f *fakeHost) SEV() SEV { return f.sev }

// ready is a machine, a guest's configuration, and nothing wrong with either.
func ready(t *testing.T, tee config.TEE) (*fakeHost, *config.Config) {
	t.Helper()
	c, err := config.Preset(string(tee))
	if err != nil {
		t.Fatal(err)
	}
	host := &fakeHost{sev: SEV{SNP: true, CBitPos: 51}, files: map[string]string{
		snpSwitch: "Y\n", tdxSwitch: "Y\n", sevDevice: "", c.TDX.QuoteService.Unix(): "",
		c.Hypervisor.Firmware: string(ovmftest.AmdSev()),
	}}
	if tee == config.TEETDX {
		host.files[c.Hypervisor.Firmware] = string(ovmftest.TDX(nil))
	}
	return host, c
}

func TestLaunchBindsInitdata(t *testing.T) {
	digest := sha512.Sum384([]byte("document"))
	host, c := ready(t, config.TEESNP)
	launch, err := Launch(host, c, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	s := launch.SNP
	if launch.TDX != nil || !bytes.Equal(s.HostData, digest[:32]) || s.Policy != 0x30000 || s.CBitPos != 51 || s.ReducedPhysBits != 1 {
		t.Errorf("SNP: %+v", s)
	}
	host, c = ready(t, config.TEETDX)
	c.TDX.MROwner = strings.Repeat("ab", 48)
	if launch, err = Launch(host, c, digest[:32]); err != nil {
		t.Fatal(err)
	}
	d := launch.TDX
	if launch.SNP != nil || !bytes.Equal(d.MRConfigID, append(digest[:32:32], make([]byte, 16)...)) || d.QuoteSocket == "" || d.QuotePort != 0 ||
		!bytes.Equal(d.MROwner, bytes.Repeat([]byte{0xab}, 48)) || d.MROwnerConfig != nil {
		t.Errorf("TDX: %+v", d)
	}
	c.TDX.QuoteService = "vsock:2:4050"
	if launch, err = Launch(host, c, nil); err != nil || launch.TDX.QuoteCID != 2 || launch.TDX.QuotePort != 4050 || launch.TDX.QuoteSocket != "" || launch.TDX.MRConfigID != nil {
		t.Errorf("TDX without a document, by vsock: %+v, %v", launch, err)
	}
	if launch, err := Launch(&fakeHost{}, config.Default(), digest[:]); launch != nil || err != nil {
		t.Errorf("no TEE: %+v, %v", launch, err)
	}
}

func TestLaunchRefused(t *testing.T) {
	for name, tc := range map[string]struct {
		tee     config.TEE
		breakIt func(*fakeHost, *config.Config)
		want    string
	}{
		"other processor":     {config.TEESNP, func(h *fakeHost, _ *config.Config) { h.sev = SEV{} }, "no SEV-SNP"},
		"snp off":             {config.TEESNP, func(h *fakeHost, _ *config.Config) { h.files[snpSwitch] = "N\n" }, "sev_snp"},
		"other kernel":        {config.TEESNP, func(h *fakeHost, _ *config.Config) { delete(h.files, snpSwitch) }, "sev_snp"},
		"no device":           {config.TEESNP, func(h *fakeHost, _ *config.Config) { delete(h.files, sevDevice) }, "/dev/sev"},
		"tdx off":             {config.TEETDX, func(h *fakeHost, _ *config.Config) { h.files[tdxSwitch] = "N\n" }, "kvm_intel.tdx=1"},
		"no quotes":           {config.TEETDX, func(h *fakeHost, c *config.Config) { delete(h.files, c.TDX.QuoteService.Unix()) }, "tdx.quote_service"},
		"no firmware":         {config.TEETDX, func(h *fakeHost, c *config.Config) { delete(h.files, c.Hypervisor.Firmware) }, "hypervisor.firmware"},
		"snp without hashes":  {config.TEESNP, firmware(ovmftest.X64()), "no SEV hash table: kernel-hashes=on needs one"},
		"snp with TDX's":      {config.TEESNP, firmware(ovmftest.TDX(nil)), "no OVMF build for SNP"},
		"tdx with SNP's":      {config.TEETDX, firmware(ovmftest.AmdSev()), "no OVMF build for TDX"},
		"firmware of nothing": {config.TEETDX, firmware(make([]byte, 4096)), "no table of GUIDs"},
	} {
		t.Run(name, func(t *testing.T) {
			host, c := ready(t, tc.tee)
			tc.breakIt(host, c)
			launch, err := Launch(host, c, nil)
			if launch != nil || !errors.Is(err, errdefs.ErrFailedPrecondition) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %+v, %v", launch, err)
			}
			if strings.Contains(tc.want, "OVMF") && !strings.Contains(err.Error(), filepath.Base(c.Hypervisor.Firmware)) {
				t.Errorf("%v does not name the file", err)
			}
		})
	}
}

func firmware(image []byte) func(*fakeHost, *config.Config) {
	return func(h *fakeHost, c *config.Config) { h.files[c.Hypervisor.Firmware] = string(image) }
}

// TestMachine asks this machine, whatever it is: it must answer, and not claim what the kernel denies.
func TestMachine(t *testing.T) {
	if sev := (Machine{}).SEV(); sev.SNP && sev.CBitPos == 0 {
		t.Errorf("SNP without a C-bit: %+v", sev)
	}
	c, err := config.Preset("snp")
	if err != nil {
		t.Fatal(err)
	}
	c.Hypervisor.Firmware = filepath.Join(t.TempDir(), "none.fd")
	if err := Check(Machine{}, c); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("no firmware: %v", err)
	}
}
