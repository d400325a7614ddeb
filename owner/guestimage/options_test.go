package guestimage

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

// guestKernel is the folder with the guest kernel's configuration and its build.
const guestKernel = "../../contrib/guest-kernel"

func TestKernelOptions(t *testing.T) {
	var all strings.Builder
	all.WriteString("# Linux/x86 6.12 Kernel Configuration\nCONFIG_VETH=m\n")
	for _, name := range needed {
		all.WriteString("CONFIG_" + name + "=y\n")
	}
	tests := map[string]struct {
		config   string
		wantText string
		wantErr  error
	}{
		"unknown": {},
		"all":     {config: all.String()},
		"off":     {strings.Replace(all.String(), "CONFIG_KEYS=y", "# CONFIG_KEYS is not set", 1), "CONFIG_KEYS,", errdefs.ErrFailedPrecondition},
		"module":  {strings.Replace(all.String(), "CONFIG_UNIX=y", "CONFIG_UNIX=m", 1), "without CONFIG_UNIX, ", errdefs.ErrFailedPrecondition},
		"two":     {strings.NewReplacer("CONFIG_PVH=y\n", "", "CONFIG_INET=y\n", "").Replace(all.String()), "CONFIG_PVH, CONFIG_INET,", errdefs.ErrFailedPrecondition},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			tree := t.TempDir()
			for file, data := range fakeKernel(t) {
				write(t, filepath.Join(tree, file), data, 0o644)
			}
			write(t, filepath.Join(tree, "boot/config-6.1-test"), []byte(tt.config), 0o644)
			_, err := loadKernel(tree)
			if !errors.Is(err, tt.wantErr) || err != nil && !strings.Contains(err.Error(), tt.wantText) {
				t.Errorf("error %v, want %v with %q", err, tt.wantErr, tt.wantText)
			}
		})
	}
}

// TestKernelWithoutModules loads a kernel that has everything built in.
func TestKernelWithoutModules(t *testing.T) {
	tree := t.TempDir()
	write(t, filepath.Join(tree, "boot/vmlinuz-6"), fakeBzImage(t, fakeVmlinux(true), "zst"), 0o644)
	if _, err := loadKernel(tree); !errdefs.IsNotFound(err) {
		t.Errorf("kernel without lib/modules: %v", err)
	}
	var builtin strings.Builder
	for _, r := range roots {
		builtin.WriteString("kernel/any/" + strings.ReplaceAll(r.name, "_", "-") + ".ko\n")
	}
	write(t, filepath.Join(tree, "lib/modules/6/modules.builtin"), []byte(builtin.String()), 0o644)
	k, err := loadKernel(tree)
	if err != nil {
		t.Fatal(err)
	}
	set, err := chooseModules(k, roots)
	if err != nil {
		t.Fatal(err)
	}
	if len(set.files) != 0 || strings.Contains(string(set.order), "/lib/modules/") {
		t.Errorf("%d files and\n%s", len(set.files), set.order)
	}
}

// TestGuestKernelFragment checks that the guest kernel's configuration asks for all that a guest needs, by name: what is
// only some other option's doing can be lost with the next series of kernels, and the build could not tell.
func TestGuestKernelFragment(t *testing.T) {
	fragment, err := os.ReadFile(filepath.Join(guestKernel, "guest.config"))
	if err != nil {
		t.Fatal(err)
	}
	if err := checkOptions(fragment); err != nil {
		t.Error(err)
	}
}

// TestGuestKernelCheck runs the comparison by which the build refuses a configuration that lost a line.
func TestGuestKernelCheck(t *testing.T) {
	fragment := "# a comment\nCONFIG_A=y\nCONFIG_B=m\n# CONFIG_C is not set\nCONFIG_D=\"x,y=z\"\n"
	tests := map[string]struct {
		config string
		want   string // what is said of the fault; empty when there is none
	}{
		"same":          {"# CONFIG_C is not set\nCONFIG_D=\"x,y=z\"\nCONFIG_B=m\nCONFIG_A=y\nCONFIG_E=y\n", ""},
		"no word of C":  {"CONFIG_A=y\nCONFIG_B=m\nCONFIG_D=\"x,y=z\"\n", ""},
		"A is lost":     {"CONFIG_B=m\nCONFIG_D=\"x,y=z\"\n", "CONFIG_A:"},
		"A is off":      {"# CONFIG_A is not set\nCONFIG_B=m\nCONFIG_D=\"x,y=z\"\n", "CONFIG_A:"},
		"B is built in": {"CONFIG_A=y\nCONFIG_B=y\nCONFIG_D=\"x,y=z\"\n", "CONFIG_B:"},
		"C is on":       {"CONFIG_A=y\nCONFIG_B=m\nCONFIG_C=y\nCONFIG_D=\"x,y=z\"\n", "CONFIG_C:"},
		"D differs":     {"CONFIG_A=y\nCONFIG_B=m\nCONFIG_D=\"x,y\"\n", "CONFIG_D:"},
		"empty":         {"", "CONFIG_A:"},
	}
	asked := write(t, filepath.Join(t.TempDir(), "fragment"), []byte(fragment), 0o644)
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			config := write(t, filepath.Join(t.TempDir(), "config"), []byte(tt.config), 0o644)
			out, err := exec.Command(filepath.Join(guestKernel, "build.sh"), "check", asked, config).CombinedOutput()
			if (err == nil) != (tt.want == "") || !strings.Contains(string(out), tt.want) {
				t.Errorf("%v: %s; want %q", err, out, tt.want)
			}
		})
	}
}
