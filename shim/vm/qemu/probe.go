package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/shim/vm"
)

const (
	kvmDevice = "/dev/kvm"
	// probeFile keeps what the trial boot found out.
	probeFile = "accelerator.json"
	// probeMemoryMiB is enough for a kernel to come to its panic.
	probeMemoryMiB = 256
	// probeSign is what the trial boot must reach: the kernel has come up so far that it misses its init.
	probeSign = "Kernel panic"
)

// verdict is the outcome of a trial boot and what it holds for.
type verdict struct {
	BootID string `json:"boot_id"`
	// QEMU and Kernel identify the files: path, size and time of change.
	QEMU        string      `json:"qemu"`
	Kernel      string      `json:"kernel"`
	Accelerator Accelerator `json:"accelerator"`
	// Reason says why KVM was not taken.
	Reason string `json:"reason,omitempty"`
}

// accelerator decides how guest code runs. Confidential guests need the processor, of which a trial boot of an ordinary one
// would tell nothing.
func (d *Driver) accelerator(ctx context.Context, config vm.Config) (Accelerator, error) {
	wanted := d.options.Accelerator
	if config.Confidential != nil {
		if wanted == TCG {
			return "", fmt.Errorf("%w: a confidential guest cannot be emulated (set hypervisor.accelerator to kvm)", errdefs.ErrFailedPrecondition)
		}
		wanted = KVM
	}
	return d.plainAccelerator(ctx, wanted, config.Kernel)
}

func (d *Driver) plainAccelerator(ctx context.Context, wanted Accelerator, kernel string) (Accelerator, error) {
	switch wanted {
	case TCG:
		return TCG, nil
	case KVM:
		if err := openKVM(); err != nil {
			return "", fmt.Errorf("%w: KVM: %w (set hypervisor.accelerator to auto or tcg)", errdefs.ErrFailedPrecondition, err)
		}
		return KVM, nil
	}
	if err := openKVM(); err != nil {
		log.G(ctx).WithError(err).Debug("no kvm, using tcg")
		return TCG, nil
	}
	v, err := d.decide(ctx, kernel)
	if err != nil {
		return "", fmt.Errorf("choose accelerator: %w", err)
	}
	return v.Accelerator, nil
}

// Probe tells how guest code would run, as New would decide it: by a real boot of kernel where that is called for and not
// yet remembered. reason says why KVM was not taken, empty when it was, or when the options say TCG.
func (d *Driver) Probe(ctx context.Context, kernel string) (_ Accelerator, reason string, _ error) {
	if err := checkBinary(d.options.Binary); err != nil {
		return "", "", err
	}
	if d.options.Accelerator == Auto {
		if err := openKVM(); err != nil {
			return TCG, err.Error(), nil
		}
		v, err := d.decide(ctx, kernel)
		return v.Accelerator, v.Reason, err
	}
	accelerator, err := d.plainAccelerator(ctx, d.options.Accelerator, kernel)
	return accelerator, "", err
}

func openKVM() error {
	device, err := os.OpenFile(kvmDevice, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return device.Close()
}

// decide returns the remembered verdict, or boots the kernel once. Only one process at a time does so.
func (d *Driver) decide(ctx context.Context, kernel string) (verdict, error) {
	want, err := d.question(kernel)
	if err != nil {
		return verdict{}, err
	}
	path := filepath.Join(d.options.CacheDir, probeFile)
	if v, ok := remembered(path, want); ok {
		return v, nil
	}
	if err := os.MkdirAll(d.options.CacheDir, 0o700); err != nil {
		return verdict{}, err
	}
	unlock, err := lock(ctx, path+".lock")
	if err != nil {
		return verdict{}, fmt.Errorf("wait for another trial boot: %w", err)
	}
	defer unlock()
	if v, ok := remembered(path, want); ok {
		return v, nil
	}
	v := want
	v.Accelerator = KVM
	if err := d.tryKVM(ctx, kernel); err != nil {
		if ctx.Err() != nil {
			return verdict{}, ctx.Err() // the caller's haste says nothing about KVM
		}
		v.Accelerator, v.Reason = TCG, err.Error()
		log.G(ctx).WithError(err).Warn("kvm does not work here, using tcg: guests will be slow")
	}
	raw, err := json.Marshal(v)
	if err == nil {
		err = writeFile(path, raw)
	}
	if err != nil {
		return verdict{}, fmt.Errorf("remember outcome: %w", err)
	}
	return v, nil
}

// question is a verdict without its answer.
func (d *Driver) question(kernel string) (verdict, error) {
	id, err := bootID()
	if err != nil {
		return verdict{}, err
	}
	v := verdict{BootID: id}
	if v.QEMU, err = identity(d.options.Binary); err != nil {
		return verdict{}, err
	}
	v.Kernel, err = identity(kernel)
	return v, err
}

func identity(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s %d %d", path, info.Size(), info.ModTime().UnixNano()), nil
}

// remembered reads the verdict at path; one that answers another question, or none, is not there.
func remembered(path string, want verdict) (verdict, bool) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return verdict{}, false
	}
	var v verdict
	if json.Unmarshal(raw, &v) != nil || (v.Accelerator != KVM && v.Accelerator != TCG) {
		return verdict{}, false
	}
	return v, v.BootID == want.BootID && v.QEMU == want.QEMU && v.Kernel == want.Kernel
}

// lock takes a file lock. A lock that ctx ended the wait for is given up as soon as the kernel grants it, at the latest
// when the holder's probe times out.
func lock(ctx context.Context, path string) (unlock func(), _ error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	fd := int(file.Fd())
	granted := make(chan error)
	go func() {
		err := unix.Flock(fd, unix.LOCK_EX)
		for errors.Is(err, unix.EINTR) {
			err = unix.Flock(fd, unix.LOCK_EX)
		}
		select {
		case granted <- err:
		case <-ctx.Done():
			file.Close()
		}
	}()
	select {
	case err := <-granted:
		if err != nil {
			file.Close()
			return nil, err
		}
		return func() { file.Close() }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// tryKVM boots the kernel without an init under KVM and returns nil when it came up.
func (d *Driver) tryKVM(ctx context.Context, kernel string) error {
	console, consoleFile, err := pair("console")
	if err != nil {
		return err
	}
	defer console.Close()
	defer consoleFile.Close()
	m := machine{accelerator: KVM, cpuModel: d.options.CPUModel, vcpus: 1, memoryMiB: probeMemoryMiB, kernel: kernel}
	p, err := spawn(d.options.Binary, probeArguments(m, firstFD), spawnOptions{files: []*os.File{consoleFile}})
	if err != nil {
		return err
	}
	consoleFile.Close()
	ctx, cancel := context.WithTimeout(ctx, d.options.ProbeTimeout)
	defer cancel()
	stop := context.AfterFunc(ctx, p.kill)
	said := &lines{keep: 50}
	said.readFrom(console)
	<-p.done
	inTime := stop()
	if text := quote(said.last(50)); !strings.Contains(text, probeSign) {
		if !inTime {
			return fmt.Errorf("the guest kernel did not boot within %s under KVM", d.options.ProbeTimeout)
		}
		return fmt.Errorf("the guest kernel did not boot under KVM: QEMU %s", p.lastWords())
	}
	return nil
}

// probeArguments is the command line of a trial boot.
func probeArguments(m machine, consoleFD int) []string {
	return []string{
		"-name", "guest=coffer-probe",
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-machine", "q35",
		"-accel", string(m.accelerator),
		"-cpu", m.cpu(),
		"-smp", "1",
		"-m", fmt.Sprintf("%dM", m.memoryMiB),
		"-kernel", m.kernel,
		"-append", m.append(),
		"-chardev", fmt.Sprintf("socket,id=console,fd=%d", consoleFD),
		"-serial", "chardev:console",
	}
}
