package nvgpu

import (
	"bytes"
	"context"
	"maps"
	"slices"

	"github.com/containerd/log"
)

// nvdec0 is the index of the measurement that means nothing on chips without the unit.
const nvdec0 = 36

// golden is what the manifests say of a device.
type golden struct {
	driver, firmware          bool // there is a manifest that can be used
	needsDriver               bool // switches have none of their own
	mismatched, contradictory []uint8
}

// complete tells whether all manifests are there that the device needs.
func (g golden) complete() bool { return g.firmware && (g.driver || !g.needsDriver) }

// match tells whether the device measured nothing but what NVIDIA did.
func (g golden) match() bool {
	return g.complete() && len(g.mismatched) == 0 && len(g.contradictory) == 0
}

// lookup returns a manifest, nil where there is none that can be used.
type lookup func(name, version string) *manifest

// cache returns a lookup that remembers manifests: a machine's GPUs share theirs. What keeps a manifest from being used is for the
// broker's log; the guest can do nothing about it.
func (v *Verifier) cache(ctx context.Context) lookup {
	known := map[string]*manifest{}
	return func(name, version string) *manifest {
		m, ok := known[name]
		if !ok {
			var err error
			if m, err = v.manifest(ctx, name, version); err != nil {
				log.G(ctx).WithError(err).Warn("nothing is known about the software of an NVIDIA device")
			}
			known[name] = m
		}
		return m
	}
}

// compare holds a device's measurements against those of its driver's and its firmware's manifests.
func (d *device) compare(find lookup) golden {
	text := func(name string) string {
		value, _ := d.settings[name].(string)
		return value
	}
	driverName, firmwareName := manifestNames(d.arch, d.settings)
	g := golden{needsDriver: driverName != ""}
	want := map[uint8][][]byte{}
	if m := find(firmwareName, text("vbios_version")); m != nil {
		g.firmware = true
		maps.Copy(want, m.golden)
	}
	if driverName != "" {
		if m := find(driverName, text("driver_version")); m != nil {
			g.driver = true
			for index, values := range m.golden {
				if _, both := want[index]; both {
					g.contradictory = append(g.contradictory, index)
				}
				want[index] = values
			}
		}
	}
	for _, index := range slices.Sorted(maps.Keys(want)) {
		if index == nvdec0 && string(d.report.opaque[opaqueNVDEC0]) == disabled {
			continue
		}
		if !slices.ContainsFunc(want[index], func(value []byte) bool { return bytes.Equal(value, d.report.measurements[index]) }) {
			g.mismatched = append(g.mismatched, index)
		}
	}
	slices.Sort(g.contradictory)
	return g
}
