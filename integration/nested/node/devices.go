package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/coffer-project/coffer/integration/harness"
	"github.com/coffer-project/coffer/integration/nested/layout"
)

// The node's CDI specification, and the names that it gives to devices.
const (
	cdiDir    = "/etc/cdi"
	cdiKind   = "coffer.test/device"
	cdiSingle = "single"
	cdiShared = "shared"
)

// backTimeout is for work that takes a real machine a moment.
const backTimeout = 3 * time.Minute

// devices are what the machine has to pass through.
type devices struct {
	// single is alone in its IOMMU group.
	single nvme
	// shared are the PCI addresses of devices of one group, which a conventional bus makes of them.
	shared []string
}

func (d *devices) String() string {
	return fmt.Sprintf("%s is alone in its IOMMU group, and %s share one", d.single.address, strings.Join(d.shared, " and "))
}

// findDevices looks at the machine and writes down for CDI what there is, as a device plugin would.
func findDevices(ctx context.Context) (*devices, error) {
	d := new(devices)
	var err error
	if d.single, err = findNVMe(ctx, layout.Serial); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(pciDevices)
	if err != nil {
		return nil, err
	}
	for _, entry := range entries {
		if dir := filepath.Join(pciDevices, entry.Name()); read(filepath.Join(dir, "vendor")) == "0x1234" && read(filepath.Join(dir, "device")) == "0x11e8" {
			d.shared = append(d.shared, entry.Name())
		}
	}
	if len(d.shared) != 2 {
		return nil, fmt.Errorf("the machine has %d of QEMU's edu devices, want 2", len(d.shared))
	}
	return d, d.describe()
}

// describe writes the CDI specification.
func (d *devices) describe() error {
	type node struct {
		Path string `json:"path"`
	}
	type device struct {
		Name  string `json:"name"`
		Edits struct {
			Nodes []node `json:"deviceNodes"`
		} `json:"containerEdits"`
	}
	var list []device
	for _, one := range []struct{ name, address string }{{cdiSingle, d.single.address}, {cdiShared, d.shared[0]}} {
		number, err := group(one.address)
		if err != nil {
			return err
		}
		entry := device{Name: one.name}
		entry.Edits.Nodes = []node{{"/dev/vfio/" + number}}
		list = append(list, entry)
	}
	raw, err := json.Marshal(map[string]any{"cdiVersion": "0.6.0", "kind": cdiKind, "devices": list})
	if err != nil {
		return err
	}
	if err := os.MkdirAll(cdiDir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(cdiDir, "test.json"), raw, 0o644)
}

// back waits until the device's own driver shows it again, and checks that the disk is the one that it was.
func (d *devices) back(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, backTimeout)
	defer cancel()
	now, err := findNVMe(ctx, layout.Serial)
	if err != nil {
		return fmt.Errorf("the device did not come back, it is driven by %q: %w", driver(d.single.address), err)
	}
	if now.address != d.single.address || driver(now.address) != "nvme" {
		return fmt.Errorf("the disk is now at %s, driven by %q", now.address, driver(now.address))
	}
	return harness.Eventually(ctx, func(context.Context) error {
		marker := os.Getenv(layout.MarkerVariable)
		got := make([]byte, len(marker))
		f, err := os.Open(now.block)
		if err != nil {
			return err
		}
		defer f.Close()
		if _, err := f.ReadAt(got, 0); err != nil || string(got) != marker {
			return fmt.Errorf("the disk begins with %q: %w", got, err)
		}
		return nil
	})
}
