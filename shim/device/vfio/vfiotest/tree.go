// Package vfiotest makes machines out of files: the part of sysfs that package vfio reads, for boards that few have, with a simulated
// kernel that binds drivers; CDI specifications as NVIDIA's device plugin writes them; and a kubelet that tells what it has allocated.
package vfiotest

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/coffer-project/coffer/shim/device/vfio"
)

// Function is a PCI function of the machine.
type Function struct {
	Address    string
	Vendor, ID uint16
	Class      uint32
	NUMANode   int
	// Resources are the lines of its file resource, by register.
	Resources [6]Resource
	// Driver is what the kernel binds when nobody asks for another; Bound is what is bound at first.
	Driver, Bound string
	Group         int
	// VPD is its vital product data.
	VPD string
	// NoReset takes its file reset away.
	NoReset bool
}

// Resource is one base address register; the zero value is one that is not in use.
type Resource struct {
	Bytes uint64
	Flags uint64
}

// Tree is a machine.
type Tree struct {
	// Host is where package vfio finds it.
	Host vfio.Host
	// SpecDir is for CDI specifications.
	SpecDir string
	// Chars says that the kernel gives each device a node of its own.
	Chars bool
	// Fail, when set, is asked before the kernel acts on what is written to a file.
	Fail func(file string) error

	root      string
	functions []Function

	mu     sync.Mutex
	resets map[string]int
}

// New makes the machine in a folder of the test's. With chars its kernel has iommufd.
func New(tb testing.TB, chars bool, functions ...Function) *Tree {
	tb.Helper()
	root := tb.TempDir()
	tree := &Tree{root: root, SpecDir: filepath.Join(root, "cdi"), Chars: chars, resets: map[string]int{}}
	tree.Host = vfio.Host{Sysfs: filepath.Join(root, "sys"), Dev: filepath.Join(root, "dev"), Write: tree.write}
	for _, dir := range []string{"dev", "cdi", "sys/class/vfio-dev", "sys/kernel/iommu_groups", "sys/bus/pci/devices", "sys/bus/pci/drivers/vfio-pci"} {
		must(tb, os.MkdirAll(filepath.Join(root, dir), 0o755))
	}
	if chars {
		must(tb, os.WriteFile(filepath.Join(root, "dev/iommu"), nil, 0o600))
	}
	for _, f := range functions {
		tree.Add(tb, f)
	}
	return tree
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

func (tree *Tree) sys(parts ...string) string {
	return filepath.Join(append([]string{tree.root, "sys"}, parts...)...)
}

func (tree *Tree) device(address string, parts ...string) string {
	return tree.sys(append([]string{"bus/pci/devices", address}, parts...)...)
}

// Add puts another function into the machine.
func (tree *Tree) Add(tb testing.TB, f Function) {
	tb.Helper()
	tree.functions = append(tree.functions, f)
	must(tb, os.Mkdir(tree.device(f.Address), 0o755))
	var resources strings.Builder
	next := uint64(1) << 40
	for _, r := range f.Resources {
		if r.Bytes == 0 {
			resources.WriteString("0x0000000000000000 0x0000000000000000 0x0000000000000000\n")
			continue
		}
		next = (next + r.Bytes - 1) / r.Bytes * r.Bytes
		fmt.Fprintf(&resources, "0x%016x 0x%016x 0x%016x\n", next, next+r.Bytes-1, r.Flags)
		next += r.Bytes
	}
	for name, text := range map[string]string{
		"vendor": fmt.Sprintf("0x%04x\n", f.Vendor), "device": fmt.Sprintf("0x%04x\n", f.ID), "class": fmt.Sprintf("0x%06x\n", f.Class),
		"numa_node": strconv.Itoa(f.NUMANode) + "\n", "resource": resources.String(), "driver_override": "(null)\n",
	} {
		must(tb, os.WriteFile(tree.device(f.Address, name), []byte(text), 0o600))
	}
	if f.VPD != "" {
		must(tb, os.WriteFile(tree.device(f.Address, "vpd"), []byte(f.VPD), 0o600))
	}
	if !f.NoReset {
		must(tb, os.WriteFile(tree.device(f.Address, "reset"), nil, 0o200))
	}
	group := tree.sys("kernel/iommu_groups", strconv.Itoa(f.Group), "devices")
	must(tb, os.MkdirAll(group, 0o755))
	must(tb, os.Symlink(tree.device(f.Address), filepath.Join(group, f.Address)))
	must(tb, os.Symlink(filepath.Dir(group), tree.device(f.Address, "iommu_group")))
	if f.Bound != "" {
		must(tb, tree.bind(f.Address, f.Bound))
	}
}

func (tree *Tree) find(address string) (Function, int) {
	for i, f := range tree.functions {
		if f.Address == address {
			return f, i
		}
	}
	return Function{}, -1
}

// char is the name of a device's own node. The kernel counts them.
func (tree *Tree) char(address string) string {
	_, i := tree.find(address)
	return "vfio" + strconv.Itoa(i)
}

func (tree *Tree) bind(address, driver string) error {
	if err := os.MkdirAll(tree.sys("bus/pci/drivers", driver), 0o755); err != nil {
		return err
	}
	if err := os.Symlink(tree.sys("bus/pci/drivers", driver), tree.device(address, "driver")); err != nil {
		return err
	}
	if driver != "vfio-pci" || !tree.Chars {
		return nil
	}
	node := tree.device(address, "vfio-dev", tree.char(address))
	if err := os.MkdirAll(node, 0o755); err != nil {
		return err
	}
	class := tree.sys("class/vfio-dev", tree.char(address))
	if err := os.Mkdir(class, 0o755); err != nil {
		return err
	}
	return os.Symlink(tree.device(address), filepath.Join(class, "device"))
}

func (tree *Tree) unbind(address string) error {
	if err := os.Remove(tree.device(address, "driver")); err != nil {
		return err
	}
	if err := os.RemoveAll(tree.device(address, "vfio-dev")); err != nil {
		return err
	}
	return os.RemoveAll(tree.sys("class/vfio-dev", tree.char(address)))
}

// write is the kernel.
func (tree *Tree) write(path, value string) error {
	tree.mu.Lock()
	defer tree.mu.Unlock()
	if tree.Fail != nil {
		if err := tree.Fail(filepath.Base(path)); err != nil {
			return err
		}
	}
	if path == tree.sys("bus/pci/drivers_probe") {
		return tree.probe(value)
	}
	rel, err := filepath.Rel(tree.sys("bus/pci/devices"), path)
	if err != nil {
		return err
	}
	address, file, _ := strings.Cut(rel, "/")
	if _, i := tree.find(address); i < 0 {
		return fmt.Errorf("write %s: %w", path, os.ErrNotExist)
	}
	switch file {
	case "driver_override":
		if value == "\n" {
			value = "(null)"
		}
		return os.WriteFile(path, []byte(strings.TrimSpace(value)+"\n"), 0o600)
	case "driver/unbind":
		return tree.unbind(address)
	case "reset":
		tree.resets[address]++
		return nil
	}
	return fmt.Errorf("write %s: %w", path, os.ErrPermission)
}

// probe binds a device to the driver that is asked for, or to its own.
func (tree *Tree) probe(address string) error {
	f, i := tree.find(address)
	if i < 0 {
		return os.ErrNotExist
	}
	driver := tree.read(address, "driver_override")
	if driver == "(null)" {
		driver = f.Driver
	}
	if driver == "" || tree.Driver(address) != "" {
		return nil
	}
	return tree.bind(address, driver)
}

func (tree *Tree) read(address, file string) string {
	raw, err := os.ReadFile(tree.device(address, file))
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(raw))
}

// Driver is what a device is bound to; empty for nothing.
func (tree *Tree) Driver(address string) string {
	target, err := os.Readlink(tree.device(address, "driver"))
	if err != nil {
		return ""
	}
	return filepath.Base(target)
}

// Override is the driver that is asked for by name; empty for none.
func (tree *Tree) Override(address string) string {
	if text := tree.read(address, "driver_override"); text != "(null)" {
		return text
	}
	return ""
}

// Resets tells how often a device was reset.
func (tree *Tree) Resets(address string) int {
	tree.mu.Lock()
	defer tree.mu.Unlock()
	return tree.resets[address]
}

// Node is the VFIO node of a device: its group's, unless it has one of its own.
func (tree *Tree) Node(address string) string {
	if tree.Chars && tree.Driver(address) == "vfio-pci" {
		return "/dev/vfio/devices/" + tree.char(address)
	}
	f, _ := tree.find(address)
	return "/dev/vfio/" + strconv.Itoa(f.Group)
}

// Vanish takes a device out of the machine.
func (tree *Tree) Vanish(tb testing.TB, address string) {
	tb.Helper()
	f, _ := tree.find(address)
	must(tb, os.Remove(tree.sys("kernel/iommu_groups", strconv.Itoa(f.Group), "devices", address)))
	must(tb, os.RemoveAll(tree.device(address)))
}
