package qemu

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coffer-project/coffer/integration/require"
	"github.com/coffer-project/coffer/shim/vm"
)

// TestHotDisks plugs disks into a running guest, which reads and writes them, and takes them out again.
func TestHotDisks(t *testing.T) {
	g := needGuest(t)
	instance := boot(t, newDriver(t, nil), g.config(t))
	mustAsk(t, instance, "print up")
	for name, tc := range map[string]struct {
		open     func(t *testing.T, image string, flag int) *os.File
		readOnly bool
	}{
		"file":           {openFile, false},
		"read-only file": {openFile, true},
		"loop device":    {openLoop, false},
	} {
		t.Run(name, func(t *testing.T) {
			image := filepath.Join(t.TempDir(), "disk.img")
			if err := os.WriteFile(image, append([]byte("sixteen bytes..."), make([]byte, 1<<20-16)...), 0o600); err != nil {
				t.Fatal(err)
			}
			flag, want := os.O_RDWR, "sixteen bytes... ro=0"
			if tc.readOnly {
				flag, want = os.O_RDONLY, "sixteen bytes... ro=1"
			}
			file := tc.open(t, image, flag)
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			serial := strings.ReplaceAll(name, " ", "-")
			address, err := instance.AttachDisk(ctx, vm.HotDisk{Serial: serial, File: file, ReadOnly: tc.readOnly})
			if err != nil {
				t.Fatal(err)
			}
			if got := awaitDisk(ctx, t, instance, serial); got != want {
				t.Errorf("the guest reads %q at %s, want %q", got, address, want)
			}
			wrote := mustAsk(t, instance, "write "+serial+" WRITTEN.BY.GUEST")
			if refused := strings.HasPrefix(wrote, "error:"); refused != tc.readOnly {
				t.Errorf("the guest's write: %s", wrote)
			}
			if err := instance.DetachDisk(ctx, serial); err != nil {
				t.Fatal(err)
			}
			if got := mustAsk(t, instance, "disk "+serial); !strings.Contains(got, "no disk") {
				t.Errorf("after the detachment the guest says %q", got)
			}
			raw, err := os.ReadFile(image)
			if err != nil || strings.HasPrefix(string(raw), "WRITTEN.BY.GUEST") == tc.readOnly {
				t.Errorf("the file begins with %q, %v", raw[:16], err)
			}
		})
	}
	t.Run("nothing is left", func(t *testing.T) {
		i := instance.(*Instance)
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		for _, query := range []string{"query-named-block-nodes", "query-fdsets"} {
			var list []any
			if err := i.monitor.Execute(ctx, query, nil, &list); err != nil || len(list) > 0 {
				t.Errorf("%s: %v, %v", query, list, err)
			}
		}
	})
}

// TestHotDiskFaults asks for what cannot be, and for what the guest does not let go.
func TestHotDiskFaults(t *testing.T) {
	g := needGuest(t)
	config := g.config(t)
	config.KernelParams = []string{"acpiphp.disable=1"} // a guest that hears of no disk and lets none go
	instance := boot(t, newDriver(t, nil), config)
	mustAsk(t, instance, "print up")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	null, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if _, err := instance.AttachDisk(ctx, vm.HotDisk{Serial: "null", File: null}); err == nil {
		t.Error("a character device was plugged in")
	}
	image := filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(image, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	readable := openFile(t, image, os.O_RDONLY)
	if _, err := instance.AttachDisk(ctx, vm.HotDisk{Serial: "a", File: readable}); err == nil {
		t.Error("a file that is open for reading alone was plugged in for writing")
	}
	file := openFile(t, image, os.O_RDWR)
	if _, err := instance.AttachDisk(ctx, vm.HotDisk{Serial: "a", File: file}); err != nil {
		t.Fatal(err)
	}
	short, stop := context.WithTimeout(ctx, 300*time.Millisecond)
	defer stop()
	if err := instance.DetachDisk(short, "a"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("detach from a guest that does not agree: %v", err)
	}
}

func openFile(t *testing.T, image string, flag int) *os.File {
	t.Helper()
	file, err := os.OpenFile(image, flag, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	return file
}

// openLoop makes a real block device of the file.
func openLoop(t *testing.T, image string, flag int) *os.File {
	t.Helper()
	require.Root(t)
	require.Program(t, "losetup", "install Debian's package mount")
	out, err := exec.Command("losetup", "--find", "--show", image).Output()
	if err != nil {
		require.Missing(t, "a free loop device: "+err.Error())
	}
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", device).CombinedOutput(); err != nil {
			t.Errorf("detach %s: %v: %s", device, err, out)
		}
	})
	return openFile(t, device, flag)
}

// awaitDisk asks for a disk until the guest has found it: the test guest has no events to offer.
func awaitDisk(ctx context.Context, t *testing.T, instance vm.Instance, serial string) string {
	t.Helper()
	for {
		answer, err := ask(ctx, instance, "disk "+serial)
		if err != nil {
			t.Fatal(err)
		}
		// A disk that cannot be opened yet is there a moment before its event.
		if !strings.HasPrefix(answer, "error: no disk") && !strings.HasSuffix(answer, syscall.ENXIO.Error()) {
			return answer
		}
	}
}
