package gpu

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/guestpull/attest"
	"github.com/coffer-project/coffer/guestpull/attest/nvgpu"
	"github.com/coffer-project/coffer/guestpull/extension"
)

// Machine returns the options of the running guest, without its parameters and its key broker.
func Machine(start Start, extensions []*extension.Extension) (Options, error) {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return Options{}, fmt.Errorf("find the kernel's release: %w", err)
	}
	o := Options{
		Root: "/", Start: start, Insert: InsertModule, MakeNode: MakeDevice, Extensions: extensions,
		Kernel: unix.ByteSliceToString(name.Release[:]),
	}
	// NVIDIA's own extension does not have the program, but the guest's image may.
	for _, program := range []string{o.place().file(nvgpu.Program), filepath.Join(o.Root, nvgpu.Program)} {
		if o.Driver != nil || !exists(program) {
			continue
		}
		asked := nvgpu.Options{Program: program, Start: nvgpu.Start(start)}
		if library := o.place().file(library); exists(library) {
			asked.Library = library
		}
		client := nvgpu.New(asked)
		o.Driver = driver{client}
		o.Evidence = func(gpus int) attest.DeviceAttester { return nvgpu.NewAttester(client, gpus) }
	}
	return o, nil
}

// library is NVIDIA's management library.
const library = "usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1"

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// driver is the one that package nvgpu asks.
type driver struct{ client *nvgpu.Client }

// State implements Driver.
func (d driver) State(ctx context.Context) (State, error) {
	s, err := d.client.State(ctx)
	if err != nil {
		return State{}, err
	}
	return State{Confidential: s.Mode != nvgpu.ModeOff || s.MultiGPU != nvgpu.MultiGPUNone, Ready: s.Ready}, nil
}

// SetReady implements Driver.
func (d driver) SetReady(ctx context.Context) error { return d.client.SetReady(ctx, true) }
