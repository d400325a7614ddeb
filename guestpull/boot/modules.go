package boot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/log"
	"golang.org/x/sys/unix"
)

// loader loads kernel modules in the order that the image builder computed; it needs no modprobe.
type loader struct {
	list []module
	// met tells whether this machine meets a module's condition, insert loads one file.
	met    func(condition string) bool
	insert func(path string) error

	mu   sync.Mutex // guards done, held while a module loads: its dependants must wait anyway
	done map[string]bool

	disks, devices *background
}

// background is a step of the boot that goes on beside other work.
type background struct {
	done chan struct{} // closed when it is over
	err  error         // valid once done is closed
}

func newBackground() *background { return &background{done: make(chan struct{})} }

func (b *background) wait(ctx context.Context) error {
	select {
	case <-b.done:
		return b.err
	case <-ctx.Done():
		return fmt.Errorf("wait for the machine's devices: %w", ctx.Err())
	}
}

func newLoader(list []module) *loader {
	known := map[string]bool{} // guarded by loader.mu, as every call of met is
	met := func(condition string) bool {
		is, found := known[condition]
		if !found {
			is = conditionMet(condition)
			known[condition] = is
		}
		return is
	}
	return &loader{
		list: list, met: met, insert: insertModule, done: map[string]bool{},
		disks: newBackground(), devices: newBackground(),
	}
}

// load loads a stage. Modules already loaded, optional ones that find nothing to serve, and those whose condition is
// not met are passed over.
func (l *loader) load(ctx context.Context, stage string) error {
	for _, m := range l.list {
		if m.stage != stage {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := l.loadOne(ctx, m); err != nil {
			return err
		}
	}
	return nil
}

func (l *loader) loadOne(ctx context.Context, m module) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.done[m.path] || (m.condition != "-" && !l.met(m.condition)) {
		return nil
	}
	name := strings.TrimSuffix(path.Base(m.path), ".ko")
	begin := time.Now()
	switch err := l.insert(m.path); {
	case err == nil || errors.Is(err, unix.EEXIST):
	case m.required:
		return fmt.Errorf("load kernel module %s: %w", name, err)
	default:
		log.G(ctx).WithError(err).WithField("module", name).Debug("optional kernel module not loaded")
		return nil
	}
	l.done[m.path] = true
	log.G(ctx).WithField("module", name).WithField("t_load", time.Since(begin)).Debug("kernel module loaded")
	return nil
}

// insertModule hands one uncompressed module to the kernel.
func insertModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.FinitModule(int(f.Fd()), "", 0)
}

// conditionMet looks at this machine.
func conditionMet(condition string) bool {
	kind, value, _ := strings.Cut(condition, ":")
	switch kind {
	case "virtio":
		return hasVirtio(virtioBus, value)
	case "path":
		_, err := os.Stat(value)
		return err == nil
	case "cpu":
		info, err := readLimited("/proc/cpuinfo", 1<<20)
		return err == nil && hasCPUFlag(string(info), value)
	}
	return false
}

// virtioBus is where the kernel lists virtio devices, whether or not they have a driver.
const virtioBus = "/sys/bus/virtio/devices"

// hasVirtio tells whether a virtio device of the type, a decimal number, is on the bus.
func hasVirtio(bus, kind string) bool {
	files, err := filepath.Glob(filepath.Join(bus, "*", "device"))
	if err != nil {
		return false
	}
	for _, file := range files {
		text, err := readLimited(file, 64)
		if err != nil {
			continue
		}
		id, err := strconv.ParseUint(strings.TrimSpace(string(text)), 0, 32)
		if err == nil && strconv.FormatUint(id, 10) == kind {
			return true
		}
	}
	return false
}

// hasCPUFlag looks the flag up in the first processor of /proc/cpuinfo.
func hasCPUFlag(info, flag string) bool {
	_, rest, found := strings.Cut(info, "\nflags")
	if !found {
		return false
	}
	line, _, _ := strings.Cut(rest, "\n")
	_, flags, _ := strings.Cut(line, ":")
	return slices.Contains(strings.Fields(flags), flag)
}

// loadTransport loads what the control channel needs.
func (m *Machine) loadTransport(ctx context.Context) error {
	list, err := readModules()
	if m.inherited.byInit && errors.Is(err, fs.ErrNotExist) {
		list, err = nil, nil // another image than ours, whose kernel has what a guest needs
	}
	if err != nil {
		return err
	}
	m.modules = newLoader(list)
	return m.modules.load(ctx, stageTransport)
}

// startBackground starts the steps that the guest's server need not wait for: disks, whose probing the kernel goes on
// with by itself, then what containers need, then the other devices and the file systems that their modules bring; and
// loopback, whose addresses cost the kernel some milliseconds.
func (m *Machine) startBackground(ctx context.Context) {
	run := func(name string, b *background, step func() error) {
		defer close(b.done)
		begin := time.Now()
		b.err = step()
		m.phases.add(name, time.Since(begin))
	}
	l := m.modules
	go run("loopback", m.loopback, loopbackUp)
	go func() {
		run("disks_modules", l.disks, func() error { return l.load(ctx, stageDisks) })
		run("container_mounts", m.mounts, func() error { return mountForContainers(m.inherited) })
		run("devices_modules", l.devices, func() error {
			if err := l.load(ctx, stageDevices); err != nil {
				return err
			}
			return mountAll(lateMounts, m.inherited)
		})
	}()
}

// WaitComplete waits for what Ready has started: network cards, disks and file systems have their
// drivers, what containers need is mounted, and loopback is up. It fails when one of these could not be had, or when ctx
// ends first.
func (m *Machine) WaitComplete(ctx context.Context) error {
	return errors.Join(m.loopback.wait(ctx), m.modules.disks.wait(ctx), m.mounts.wait(ctx), m.modules.devices.wait(ctx))
}

// WaitDevices waits until drivers of devices are loaded and the file systems that they bring are mounted, configfs among them. It fails when
// a required driver could not be loaded, or when ctx ends first.
func (m *Machine) WaitDevices(ctx context.Context) error { return m.modules.devices.wait(ctx) }

// LoadModules loads a stage of the image's module list that is not loaded at boot, such as "storage". A stage that the
// image does not have is empty.
func (m *Machine) LoadModules(ctx context.Context, stage string) error {
	return m.modules.load(ctx, stage)
}
