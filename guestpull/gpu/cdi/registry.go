package cdi

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"tags.cncf.io/container-device-interface/pkg/cdi"
)

// Dir is where the guest's own tools put specifications.
const Dir = "/var/run/cdi"

// Limits of the folder.
const (
	maxFiles = 16
	maxFile  = 4 << 20 // bytes; eight GPUs with their parts take some 100 KiB
)

// Registry holds the devices that the guest's specifications describe.
type Registry struct {
	devices map[string]*cdi.Device
}

// Read reads all specifications in dir. One that is damaged or does more than the rules allow is errdefs.ErrFailedPrecondition, and so is a
// device that two of them describe.
func Read(dir string, rules Rules) (*Registry, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read device specifications: %w", err)
	}
	if len(entries) > maxFiles {
		return nil, fmt.Errorf("%d files of device specifications are more than %d: %w", len(entries), maxFiles, errdefs.ErrFailedPrecondition)
	}
	r := &Registry{devices: map[string]*cdi.Device{}}
	for _, entry := range entries {
		if ext := filepath.Ext(entry.Name()); ext != ".yaml" && ext != ".json" {
			continue
		}
		if err := r.add(filepath.Join(dir, entry.Name()), rules); err != nil {
			return nil, fmt.Errorf("device specification %s: %w: %w", entry.Name(), err, errdefs.ErrFailedPrecondition)
		}
	}
	return r, nil
}

func (r *Registry) add(file string, rules Rules) error {
	if err := checkSize(file); err != nil {
		return err
	}
	spec, err := cdi.ReadSpec(file, 0)
	if err != nil {
		return err
	}
	if err := rules.check(&spec.ContainerEdits); err != nil {
		return err
	}
	for i := range spec.Devices {
		d := &spec.Devices[i]
		if err := rules.check(&d.ContainerEdits); err != nil {
			return fmt.Errorf("device %.64q: %w", d.Name, err)
		}
		name := spec.Kind + "=" + d.Name
		if _, twice := r.devices[name]; twice {
			return fmt.Errorf("device %.128q is in another one, too", name)
		}
		r.devices[name] = spec.GetDevice(d.Name)
	}
	return nil
}

// checkSize keeps a reader that has no limit from a file without end.
func checkSize(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	if n, err := io.Copy(io.Discard, io.LimitReader(f, maxFile+1)); err != nil || n > maxFile {
		return errors.Join(fmt.Errorf("it cannot be read or has more than %d bytes", maxFile), err)
	}
	return nil
}

// Names lists the devices.
func (r *Registry) Names() []string {
	var out []string
	for name := range r.devices {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

// Inject changes a container's specification so that it has the devices. A device that no specification describes is
// errdefs.ErrNotFound; then the container's is as it was.
func (r *Registry) Inject(to *specs.Spec, names []string) error {
	var devices []*cdi.Device
	for _, name := range names {
		d, has := r.devices[name]
		if !has {
			return fmt.Errorf("the guest has no device %s (it has %.256q): %w", name, r.Names(), errdefs.ErrNotFound)
		}
		devices = append(devices, d)
	}
	done := map[*cdi.Spec]bool{}
	for _, d := range devices {
		if spec := d.GetSpec(); !done[spec] { // what all devices of it need, once
			done[spec] = true
			if err := spec.ApplyEdits(to); err != nil {
				return fmt.Errorf("device %s: %w: %w", d.GetQualifiedName(), err, errdefs.ErrFailedPrecondition)
			}
		}
		if err := d.ApplyEdits(to); err != nil {
			return fmt.Errorf("device %s: %w: %w", d.GetQualifiedName(), err, errdefs.ErrFailedPrecondition)
		}
	}
	return nil
}
