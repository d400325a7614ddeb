package qemu

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coffer-project/coffer/shim/vm"
)

// needKVMDevice skips where auto has nothing to decide.
func needKVMDevice(t *testing.T) {
	t.Helper()
	if err := openKVM(); err != nil {
		t.Skipf("auto has nothing to decide: %v", err)
	}
}

// probeDriver has a stand-in for QEMU that prints text on the console, counts its runs, and ends.
func probeDriver(t *testing.T, text string, then string) (driver *Driver, kernel string, runs func() int) {
	t.Helper()
	count := filepath.Join(t.TempDir(), "count")
	kernel = filepath.Join(t.TempDir(), "vmlinux")
	if err := os.WriteFile(kernel, []byte("kernel"), 0o600); err != nil {
		t.Fatal(err)
	}
	driver = newDriver(t, func(o *Options) {
		o.Accelerator, o.ProbeTimeout = Auto, 500*time.Millisecond
		o.Binary = script(t, "echo run >>"+count+"; echo '"+text+"' >&3; "+then)
	})
	return driver, kernel, func() int {
		raw, _ := os.ReadFile(count)
		return strings.Count(string(raw), "run")
	}
}

func TestAutoDecides(t *testing.T) {
	needKVMDevice(t)
	for name, tc := range map[string]struct {
		text, then string
		want       Accelerator
		reason     string
	}{
		"boots":    {"Kernel panic - not syncing: VFS", "exit 0", KVM, ""},
		"spins":    {"SeaBIOS", "exec sleep 60", TCG, "within 500ms"},
		"triple":   {"", "exit 0", TCG, "exit status 0"},
		"no start": {"", "echo failed to initialize kvm >&2; exit 1", TCG, "failed to initialize kvm"},
	} {
		t.Run(name, func(t *testing.T) {
			driver, kernel, runs := probeDriver(t, tc.text, tc.then)
			for range 2 { // the second answer is the remembered one
				v, err := driver.decide(t.Context(), kernel)
				if err != nil || v.Accelerator != tc.want || !strings.Contains(v.Reason, tc.reason) {
					t.Errorf("got %+v, %v", v, err)
				}
			}
			if runs() != 1 {
				t.Errorf("%d trial boots", runs())
			}
			// Another kernel is another question.
			if err := os.WriteFile(kernel, []byte("newer kernel"), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := driver.decide(t.Context(), kernel); err != nil || runs() != 2 {
				t.Errorf("%d trial boots, %v", runs(), err)
			}
		})
	}
}

func TestAutoOnlyOneTrial(t *testing.T) {
	needKVMDevice(t)
	driver, kernel, runs := probeDriver(t, "Kernel panic", "exit 0")
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() {
			if a, err := driver.accelerator(t.Context(), vm.Config{Kernel: kernel}); a != KVM || err != nil {
				t.Errorf("got %s, %v", a, err)
			}
		})
	}
	wg.Wait()
	if runs() != 1 {
		t.Errorf("%d trial boots", runs())
	}
}

func TestAutoCancelled(t *testing.T) {
	needKVMDevice(t)
	driver, kernel, _ := probeDriver(t, "", "exec sleep 60")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := driver.accelerator(ctx, vm.Config{Kernel: kernel}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(filepath.Join(driver.options.CacheDir, probeFile)); err == nil {
		t.Error("a trial that was cut short is remembered")
	}
}

func TestAutoIgnoresDamagedCache(t *testing.T) {
	needKVMDevice(t)
	driver, kernel, runs := probeDriver(t, "Kernel panic", "exit 0")
	if err := os.WriteFile(filepath.Join(driver.options.CacheDir, probeFile), []byte(`{"accelerator": "none"`), 0o600); err != nil {
		t.Fatal(err)
	}
	if a, err := driver.accelerator(t.Context(), vm.Config{Kernel: kernel}); a != KVM || err != nil || runs() != 1 {
		t.Errorf("got %s, %v, %d trial boots", a, err, runs())
	}
}

// TestAutoForReal boots a real kernel under KVM, if it boots, and then a guest with what was chosen.
func TestAutoForReal(t *testing.T) {
	g := needGuest(t)
	needKVMDevice(t)
	driver := newDriver(t, func(o *Options) { o.Accelerator = Auto })
	v, err := driver.decide(t.Context(), g.kernel)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("chosen: %s (%s)", v.Accelerator, v.Reason)
	if got := mustAsk(t, boot(t, driver, g.config(t)), "print up"); got != "printed" {
		t.Errorf("answer %q", got)
	}
}

// TestProbe: what people are told is what New would decide.
func TestProbe(t *testing.T) {
	kernel := filepath.Join(t.TempDir(), "vmlinux")
	driver := newDriver(t, func(o *Options) { o.Accelerator, o.Binary = TCG, script(t, "exit 1") })
	if got, reason, err := driver.Probe(t.Context(), kernel); got != TCG || reason != "" || err != nil {
		t.Errorf("tcg asked for: %s, %q, %v", got, reason, err)
	}
	driver.options.Binary = filepath.Join(t.TempDir(), "none")
	if _, _, err := driver.Probe(t.Context(), kernel); err == nil {
		t.Error("no QEMU is no fault")
	}
	needKVMDevice(t)
	spins, kernel, runs := probeDriver(t, "SeaBIOS", "exec sleep 60")
	for range 2 {
		if got, reason, err := spins.Probe(t.Context(), kernel); got != TCG || !strings.Contains(reason, "within 500ms") || err != nil {
			t.Errorf("kvm spins: %s, %q, %v", got, reason, err)
		}
	}
	if runs() != 1 {
		t.Errorf("%d trial boots, want 1", runs())
	}
}
