package guestimage

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

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
