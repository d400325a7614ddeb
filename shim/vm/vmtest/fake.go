// Package vmtest holds what tests of the VM seam share: a fake driver whose guest is a set of in-memory listeners, and
// the conformance suite that every driver, and the fake, must pass.
package vmtest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/shim/vm"
)

// FakePID is what the fake's instances report as their monitor's process id. It belongs to no process.
const FakePID = 1 << 30

// Driver is a vm.Driver without a VM. Set the fields before its first use.
type Driver struct {
	// NewErr and StartErr, when set, are returned by New and Start.
	NewErr, StartErr error
	// AttachErr and DetachErr, when set, are returned by AttachDisk and DetachDisk.
	AttachErr, DetachErr error
	// OnStart, when set, runs in Start once the instance counts as running; the place to Listen on the guest's ports.
	OnStart func(*Instance)

	mu        sync.Mutex
	instances []*Instance
	cleaned   []string
}

var _ vm.Driver = (*Driver)(nil)

// New implements vm.Driver.
func (d *Driver) New(ctx context.Context, config vm.Config) (vm.Instance, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	i := &Instance{
		Config: config, driver: d, console: []string{},
		listeners: map[uint32]*listener{}, changed: make(chan struct{}), done: make(chan struct{}), disks: map[string]vm.HotDisk{},
		printed: make(chan struct{}),
	}
	if d.NewErr != nil {
		i.closeFiles() // New owns them from the call on, also when it fails
		return nil, d.NewErr
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.instances = append(d.instances, i)
	return i, nil
}

// Cleanup implements vm.Driver. It ends the instances of stateDir.
func (d *Driver) Cleanup(ctx context.Context, stateDir string) error {
	d.mu.Lock()
	d.cleaned = append(d.cleaned, stateDir)
	instances := append([]*Instance(nil), d.instances...)
	d.mu.Unlock()
	for _, i := range instances {
		if i.Config.StateDir == stateDir {
			i.end(vm.Exit{Err: errors.New("ended by cleanup")})
		}
	}
	return ctx.Err()
}

// Instances returns all instances that New has made, oldest first.
func (d *Driver) Instances() []*Instance {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]*Instance(nil), d.instances...)
}

// Cleaned returns the state directories that Cleanup was called for.
func (d *Driver) Cleaned() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]string(nil), d.cleaned...)
}

// Instance is a fake VM. Beside vm.Instance it offers the guest's side (Listen, Print) and ways to die (Crash).
type Instance struct {
	// Config is what New was given.
	Config vm.Config

	driver *Driver
	done   chan struct{}

	mu        sync.Mutex
	started   bool
	ended     bool
	exit      vm.Exit
	console   []string
	printed   chan struct{} // closed and replaced when the console grows
	listeners map[uint32]*listener
	changed   chan struct{} // closed and replaced when a listener comes or goes
	disks     map[string]vm.HotDisk
	plugged   int
}

var _ vm.Instance = (*Instance)(nil)

// Start implements vm.Instance.
func (i *Instance) Start(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		i.end(vm.Exit{Err: err})
		return err
	}
	if i.driver.StartErr != nil {
		i.end(vm.Exit{Err: i.driver.StartErr})
		return i.driver.StartErr
	}
	i.mu.Lock()
	if i.started || i.ended {
		i.mu.Unlock()
		return fmt.Errorf("start vm %s: %w: it was started before", i.Config.ID, errdefs.ErrFailedPrecondition)
	}
	i.started = true
	i.mu.Unlock()
	if i.driver.OnStart != nil {
		i.driver.OnStart(i)
	}
	return nil
}

// Dial implements vm.Instance. It waits for Listen.
func (i *Instance) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	for {
		i.mu.Lock()
		started, ended, exit, changed, l := i.started, i.ended, i.exit, i.changed, i.listeners[port]
		i.mu.Unlock()
		switch {
		case ended:
			return nil, fmt.Errorf("dial vm %s port %d: %w: %w", i.Config.ID, port, errdefs.ErrUnavailable, exitErr(exit))
		case !started:
			return nil, fmt.Errorf("dial vm %s port %d: %w: it is not started", i.Config.ID, port, errdefs.ErrFailedPrecondition)
		case l != nil:
			if conn, err := l.dial(ctx); err == nil || ctx.Err() != nil {
				return conn, err
			}
			continue // the listener closed in between
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("dial vm %s port %d: %w", i.Config.ID, port, ctx.Err())
		case <-changed:
		case <-i.done:
		}
	}
}

func exitErr(exit vm.Exit) error {
	if exit.Err != nil {
		return exit.Err
	}
	return errors.New("it was stopped")
}

// PID implements vm.Instance.
func (i *Instance) PID() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	if !i.started {
		return 0
	}
	return FakePID
}

// Done implements vm.Instance.
func (i *Instance) Done() <-chan struct{} { return i.done }

// Exit implements vm.Instance.
func (i *Instance) Exit() vm.Exit {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.exit
}

// Console implements vm.Instance.
func (i *Instance) Console() []string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return append([]string(nil), i.console...)
}

// ConsoleFrom implements vm.Instance.
func (i *Instance) ConsoleFrom(ctx context.Context, from uint64) ([]string, uint64, error) {
	for {
		i.mu.Lock()
		count, ended, printed := uint64(len(i.console)), i.ended, i.printed
		lines := append([]string(nil), i.console[min(from, count):]...)
		i.mu.Unlock()
		switch {
		case len(lines) > 0:
			return lines, count, nil
		case ended:
			return nil, count, io.EOF
		}
		select {
		case <-printed:
		case <-i.done:
		case <-ctx.Done():
			return nil, count, ctx.Err()
		}
	}
}

// Stop implements vm.Instance.
func (i *Instance) Stop(context.Context) error {
	i.end(vm.Exit{Requested: true})
	return nil
}

// AttachDisk implements vm.Instance. No slot is used twice.
func (i *Instance) AttachDisk(ctx context.Context, disk vm.HotDisk) (string, error) {
	if err := cmp.Or(ctx.Err(), i.driver.AttachErr); err != nil {
		return "", err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if !i.started || i.ended {
		return "", fmt.Errorf("plug disk into vm %s: %w: it does not run", i.Config.ID, errdefs.ErrFailedPrecondition)
	}
	if _, exists := i.disks[disk.Serial]; exists {
		return "", fmt.Errorf("plug disk into vm %s: disk %s: %w", i.Config.ID, disk.Serial, errdefs.ErrAlreadyExists)
	}
	i.disks[disk.Serial] = disk
	i.plugged++
	return fmt.Sprintf("1e/%02x", i.plugged), nil
}

// DetachDisk implements vm.Instance.
func (i *Instance) DetachDisk(ctx context.Context, serial string) error {
	if err := cmp.Or(ctx.Err(), i.driver.DetachErr); err != nil {
		return err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	delete(i.disks, serial)
	return nil
}

// PCIPath implements vm.Instance. Ports are slots of the root bus, in the order of the devices.
func (i *Instance) PCIPath(hostAddress string) (string, error) {
	for n, d := range i.Config.PCIDevices {
		if d.Address == hostAddress {
			return fmt.Sprintf("%02x/00", n), nil
		}
	}
	return "", fmt.Errorf("device %s: %w", hostAddress, errdefs.ErrNotFound)
}

// Disks returns the serials of the disks that are plugged in, in order.
func (i *Instance) Disks() []string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return slices.Sorted(maps.Keys(i.disks))
}

// Print adds a line to the console.
func (i *Instance) Print(line string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.console = append(i.console, line)
	close(i.printed)
	i.printed = make(chan struct{})
}

// Crash ends the VM as if by itself.
func (i *Instance) Crash(err error) { i.end(vm.Exit{Err: err}) }

func (i *Instance) end(exit vm.Exit) {
	i.mu.Lock()
	if i.ended {
		i.mu.Unlock()
		return
	}
	i.ended = true
	exit.At = time.Now()
	i.exit = exit
	listeners := i.listeners
	i.listeners = map[uint32]*listener{}
	i.mu.Unlock()
	for _, l := range listeners {
		l.shut(true)
	}
	i.closeFiles()
	close(i.done)
}

func (i *Instance) closeFiles() {
	for _, disk := range i.Config.Disks {
		if disk.File != nil {
			disk.File.Close()
		}
	}
	for _, nic := range i.Config.NICs {
		if nic.Tap != nil {
			nic.Tap.Close()
		}
	}
}
