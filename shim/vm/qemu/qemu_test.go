package qemu

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/shim/vm"
	"github.com/coffer-project/coffer/shim/vm/vmtest"
)

const (
	echoPort    = 1024
	controlPort = 1030
	silentPort  = 1031

	// patience bounds each wait; an emulated guest on a busy machine is slow.
	patience = 90 * time.Second
)

// ask sends the test guest a command and returns its answer.
func ask(ctx context.Context, instance vm.Instance, command string) (string, error) {
	conn, err := instance.Dial(ctx, controlPort)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if _, err := fmt.Fprintln(conn, command); err != nil {
		return "", err
	}
	answer, err := bufio.NewReader(conn).ReadString('\n')
	return strings.TrimSpace(answer), err
}

func boot(t *testing.T, driver vm.Driver, config vm.Config) vm.Instance {
	t.Helper()
	instance, err := driver.New(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := instance.Stop(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := instance.Start(ctx); err != nil {
		t.Fatal(err)
	}
	return instance
}

func mustAsk(t *testing.T, instance vm.Instance, command string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	answer, err := ask(ctx, instance, command)
	if err != nil {
		t.Fatalf("%s: %v", command, err)
	}
	return answer
}

func TestConformance(t *testing.T) {
	g := needGuest(t)
	vmtest.Run(t, vmtest.Harness{
		Driver: newDriver(t, nil), Config: func(t *testing.T) vm.Config { return g.config(t) }, EchoPort: echoPort, SilentPort: silentPort,
		Die: func(t *testing.T, instance vm.Instance) {
			// The stream breaks before there is an answer.
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			_, _ = ask(ctx, instance, "panic")
		},
	})
}

// TestEnds checks that each way a guest can end is told apart, with the console's last words.
func TestEnds(t *testing.T) {
	g := needGuest(t)
	driver := newDriver(t, nil)
	for name, tc := range map[string]struct {
		command string
		want    []string
	}{
		"panic":    {"panic", []string{"guest kernel panicked", "sysrq triggered crash"}},
		"die":      {"die", []string{"guest kernel panicked", "told to die", "Attempted to kill init"}},
		"poweroff": {"poweroff", []string{"guest powered itself off", "told to power off"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			instance := boot(t, driver, g.config(t))
			if got := mustAsk(t, instance, "print hello\x1b[31m from the guest"); got != "printed" {
				t.Errorf("answer %q", got)
			}
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			_, _ = ask(ctx, instance, tc.command) // the stream breaks before there is an answer
			select {
			case <-instance.Done():
			case <-ctx.Done():
				t.Fatal("the vm does not end")
			}
			err := instance.Exit().Err
			if err == nil {
				t.Fatal("no error")
			}
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q does not say %q", err, want)
				}
			}
			if console := strings.Join(instance.Console(), "\n"); !strings.Contains(console, "hello[31m from the guest") {
				t.Errorf("console: %q", console)
			}
		})
	}
}

// TestNoInit boots a kernel without an initrd: it panics before it knows the panic device.
func TestNoInit(t *testing.T) {
	g := needGuest(t)
	config := g.config(t)
	config.Initrd = ""
	instance := boot(t, newDriver(t, nil), config)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	_, err := instance.Dial(ctx, echoPort)
	if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "reset the machine") || !strings.Contains(err.Error(), "Unable to mount root") {
		t.Errorf("got %v", err)
	}
}

func TestDevices(t *testing.T) {
	g := needGuest(t)
	config := g.config(t)
	for _, name := range []string{"initdata", "scratch,1"} { // a comma is special to QEMU
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, append([]byte("marker "+name[:4]+"     "), make([]byte, 4096)...)[:4096], 0o600); err != nil {
			t.Fatal(err)
		}
		config.Disks = append(config.Disks, vm.Disk{Serial: name[:4] + "-1", Path: path, ReadOnly: name == "initdata"})
	}
	config.VCPUs = 2
	config.KernelParams = []string{"agent.log=debug", "coffer.test=1"}
	instance := boot(t, newDriver(t, nil), config)
	if got := mustAsk(t, instance, "disk init-1"); got != "marker init      ro=1" {
		t.Errorf("read-only disk: %q", got)
	}
	if got := mustAsk(t, instance, "disk scra-1"); got != "marker scra      ro=0" {
		t.Errorf("writable disk: %q", got)
	}
	if got := mustAsk(t, instance, "cmdline"); !strings.HasSuffix(got, "agent.log=debug coffer.test=1") {
		t.Errorf("kernel command line: %q", got)
	}
}

// TestKilled ends QEMU from outside.
func TestKilled(t *testing.T) {
	g := needGuest(t)
	instance := boot(t, newDriver(t, nil), g.config(t))
	process, err := os.FindProcess(instance.PID())
	if err != nil {
		t.Fatal(err)
	}
	if err := process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-instance.Done()
	if err := instance.Exit().Err; err == nil || !strings.Contains(err.Error(), "killed") || !strings.Contains(err.Error(), "dmesg") {
		t.Errorf("got %v", err)
	}
}

func TestStopByForce(t *testing.T) {
	g := needGuest(t)
	instance := boot(t, newDriver(t, nil), g.config(t))
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if err := instance.Stop(over); err != nil {
		t.Errorf("stop with a context that has ended: %v", err)
	}
	select {
	case <-instance.Done():
	default:
		t.Error("Stop returned before the end")
	}
}

// TestStopHung stops a QEMU that answers nothing any more.
func TestStopHung(t *testing.T) {
	g := needGuest(t)
	instance := boot(t, newDriver(t, func(o *Options) { o.ShutdownGrace = 200 * time.Millisecond }), g.config(t))
	if err := unix.Kill(instance.PID(), unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if err := instance.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if exit := instance.Exit(); !exit.Requested || exit.Err == nil || !strings.Contains(exit.Err.Error(), "did not end within 200ms") {
		t.Errorf("exit %+v", exit)
	}
}

// TestGuestSilent dials a guest that never answers: the error must carry what the console says.
func TestGuestSilent(t *testing.T) {
	g := needGuest(t)
	instance := boot(t, newDriver(t, nil), g.config(t))
	mustAsk(t, instance, "print waiting for a disk that never comes")
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err := instance.Dial(ctx, silentPort)
	if err == nil || !strings.Contains(err.Error(), "last console lines: ") || !strings.Contains(err.Error(), "never comes") {
		t.Errorf("got %v", err)
	}
}

// descriptors counts the process's open files.
func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// TestNoDescriptorLeaks starts VMs that fail in each way, and one that does not.
func TestNoDescriptorLeaks(t *testing.T) {
	g := needGuest(t)
	taps := func() []vm.NIC {
		file, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		return []vm.NIC{{Tap: file, MAC: []byte{2, 0, 0, 0, 0, 1}}}
	}
	live := func() {
		instance := boot(t, newDriver(t, nil), g.config(t))
		mustAsk(t, instance, "print up")
		if err := instance.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	live() // opens what the Go runtime keeps
	before := descriptors(t)
	for range 5 {
		for _, text := range []string{"exit 1", "echo hello >&3; exec sleep 60"} {
			config := g.config(t)
			config.NICs = taps()
			instance, err := newDriver(t, func(o *Options) { o.Binary = script(t, text) }).New(t.Context(), config)
			if err != nil {
				t.Fatal(err)
			}
			if err := instance.Start(t.Context()); err == nil {
				t.Error("started")
			}
			config = g.config(t)
			config.NICs, config.ID = taps(), ","
			if _, err := newDriver(t, nil).New(t.Context(), config); err == nil {
				t.Error("a bad id passes")
			}
		}
	}
	live()
	if after := descriptors(t); after > before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

// script writes an executable that stands for QEMU.
func script(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "qemu")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestStartFaults(t *testing.T) {
	kernel := filepath.Join(t.TempDir(), "vmlinux")
	if err := os.WriteFile(kernel, []byte("\x7fELF"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		binary string
		netNS  string
		want   string
	}{
		"exits at once": {script(t, "echo 'qemu: no such option' >&2; exit 1"), "", "exit status 1, saying: qemu: no such option"},
		"no network":    {script(t, "exit 0"), "/proc/1/task/none/ns/net", "network namespace"},
		"no program":    {kernel, "", "cannot be executed"},
		"no greeting":   {script(t, "echo hello >&3; exec sleep 60"), "", "invalid character"},
	} {
		t.Run(name, func(t *testing.T) {
			config := vm.Config{ID: "x", StateDir: t.TempDir(), VCPUs: 1, MemoryMiB: 128, Kernel: kernel, NetNS: tc.netNS}
			driver := newDriver(t, func(o *Options) { o.Binary = tc.binary })
			instance, err := driver.New(t.Context(), config)
			if err == nil {
				err = instance.Start(t.Context())
				<-instance.Done()
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v", err)
			}
			if left, _ := os.ReadDir(config.StateDir); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
	t.Run("silence", func(t *testing.T) {
		driver := newDriver(t, func(o *Options) { o.Binary = script(t, "echo busy >&2; exec sleep 60") })
		instance, err := driver.New(t.Context(), vm.Config{ID: "x", StateDir: t.TempDir(), VCPUs: 1, MemoryMiB: 128, Kernel: kernel})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		if err := instance.Start(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		<-instance.Done()
	})
}

func TestNewFaults(t *testing.T) {
	kernel := filepath.Join(t.TempDir(), "vmlinux")
	if err := os.WriteFile(kernel, []byte("\x7fELF"), 0o600); err != nil {
		t.Fatal(err)
	}
	good := vm.Config{ID: "x", StateDir: "/s", VCPUs: 1, MemoryMiB: 128, Kernel: kernel}
	for name, tc := range map[string]struct {
		options func(*Options)
		config  func(*vm.Config)
		class   error
		want    string
	}{
		"no qemu":     {func(o *Options) { o.Binary = "/nonexistent/qemu" }, nil, errdefs.ErrFailedPrecondition, "not installed"},
		"no kernel":   {nil, func(c *vm.Config) { c.Kernel = "/nonexistent/vmlinux" }, errdefs.ErrFailedPrecondition, "hypervisor.kernel"},
		"text":        {nil, func(c *vm.Config) { c.Kernel = script(t, "no kernel") }, errdefs.ErrFailedPrecondition, "neither a vmlinux nor a bzImage"},
		"no initrd":   {nil, func(c *vm.Config) { c.Initrd = "/nonexistent/initrd" }, errdefs.ErrFailedPrecondition, "hypervisor.initrd"},
		"id":          {nil, func(c *vm.Config) { c.ID = "a,b" }, errdefs.ErrInvalidArgument, "sandbox id"},
		"memory":      {nil, func(c *vm.Config) { c.MemoryMiB = 1 }, errdefs.ErrInvalidArgument, "1 MiB"},
		"parameter":   {nil, func(c *vm.Config) { c.KernelParams = []string{"a b"} }, errdefs.ErrInvalidArgument, "kernel parameter"},
		"long line":   {nil, func(c *vm.Config) { c.KernelParams = []string{strings.Repeat("a", 2000)} }, errdefs.ErrInvalidArgument, "command line"},
		"serial":      {nil, func(c *vm.Config) { c.Disks = []vm.Disk{{Serial: "A,b", Path: kernel}} }, errdefs.ErrInvalidArgument, "serial"},
		"serials":     {nil, func(c *vm.Config) { c.Disks = []vm.Disk{{Serial: "a", Path: kernel}, {Serial: "a", Path: kernel}} }, errdefs.ErrInvalidArgument, "two disks"},
		"disk":        {nil, func(c *vm.Config) { c.Disks = []vm.Disk{{Serial: "a", Path: "/nonexistent/disk"}} }, errdefs.ErrFailedPrecondition, "disk a"},
		"card":        {nil, func(c *vm.Config) { c.NICs = []vm.NIC{{}} }, errdefs.ErrInvalidArgument, "no tap"},
		"forced vsck": {func(o *Options) { o.Transport = Vsock }, nil, errdefs.ErrFailedPrecondition, "vhost_vsock"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := os.Stat("/dev/vhost-vsock"); err == nil && strings.Contains(tc.want, "vhost") {
				t.Skip("this machine has /dev/vhost-vsock")
			}
			config := good
			if tc.config != nil {
				tc.config(&config)
			}
			_, err := newDriver(t, func(o *Options) {
				o.Binary = "/bin/true"
				if tc.options != nil {
					tc.options(o)
				}
			}).New(t.Context(), config)
			if !errors.Is(err, tc.class) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestOptionsFaults(t *testing.T) {
	_, err := NewDriver(Options{Accelerator: "xen", Transport: "pigeon"})
	for _, want := range []string{"no binary", "xen", "pigeon", "console lines", "grace"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not name %s", err, want)
		}
	}
}
