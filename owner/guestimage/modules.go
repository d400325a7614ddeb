package guestimage

import (
	"bytes"
	"debug/elf"
	"fmt"
	"path"
	"strings"

	"github.com/containerd/errdefs"
)

// maxModule bounds one decompressed module, in bytes.
const maxModule = 64 << 20

// root is a module that the guest wants; what it depends on comes along.
type root struct {
	name string
	// stage is when the guest loads it: "transport" before anything else, "disks" and "devices" beside the start of its
	// server, "on:NAME" when the kernel asks for the module NAME, any other when a part of the guest asks.
	stage    string
	required bool
	// condition is what a machine must have for the module to be of use; "-" for none. See guestpull/boot.
	condition string
}

// roots is what a guest needs of its kernel, in load order. Left out on purpose: xfs and btrfs, which cost a second of
// boot, and all that serves real hardware.
var roots = []root{
	{"vmw_vsock_virtio_transport", "transport", true, "virtio:19"},
	{"virtio_blk", "disks", true, "-"},
	{"virtio_net", "devices", true, "-"},
	{"overlay", "devices", true, "-"},
	{"virtio_rng", "devices", false, "virtio:4"},
	{"pvpanic_pci", "devices", false, "-"}, // so that the shim is told of a panic
	{"sev_guest", "devices", false, "path:/sys/devices/platform/sev-guest"},
	{"tdx_guest", "devices", false, "cpu:tdx_guest"},
	{"erofs", "storage", true, "-"},
	{"loop", "storage", true, "-"},
	{"dm_mod", "storage", true, "-"},
	{"dm_verity", "storage", true, "-"},
	{"dm_crypt", "storage", true, "-"},
	{"dm_integrity", "storage", true, "-"},
	{"aesni_intel", "storage", false, "-"},
	{"xts", "storage", true, "-"},
	{"gcm", "storage", true, "-"},
	// Extension images.
	{"erofs", "extension", true, "-"},
	{"dm_verity", "extension", true, "-"},
	// A scratch disk that is encrypted, and what it needs besides to be authenticated, too. A cipher must be there before
	// it is used: nobody loads it when the kernel asks.
	{"aesni_intel", "scratch", false, "-"},
	{"xts", "scratch", true, "-"},
	{"dm_crypt", "scratch", true, "-"},
	{"ghash_generic", "scratch-authenticated", true, "-"},
	{"gcm", "scratch-authenticated", true, "-"},
	{"dm_integrity", "scratch-authenticated", true, "-"},
	// What a container with the privilege to make network devices asks the kernel for.
	{"bridge", "on:bridge", true, "-"},
	{"dummy", "on:dummy", true, "-"},
	{"veth", "on:veth", true, "-"},
	// What opening /dev/fuse asks for, and a mount in another container that has the file open already.
	{"fuse", "on:char_major_10_229", false, "-"},
	{"fuse", "on:fs_fuse", false, "-"},
	// The same for /dev/net/tun.
	{"tun", "on:char_major_10_200", false, "-"},
}

// moduleSet is the closure of roots over a kernel's modules.
type moduleSet struct {
	// files are the decompressed modules by path below lib/modules/VERSION/, without the compression's extension.
	files map[string][]byte
	// order is the text of the load list.
	order []byte
}

// chooser computes a moduleSet.
type chooser struct {
	kernel *kernel
	byName map[string]string // module name -> path as packed
	set    moduleSet
	loaded map[string][]byte // module name -> decompressed file
	list   bytes.Buffer
}

// chooseModules takes the roots' closure and writes down in which order to load it. A root that is built into the kernel
// needs no file; one that the kernel does not have at all is an error if it is required.
func chooseModules(k *kernel, roots []root) (*moduleSet, error) {
	c := &chooser{kernel: k, byName: map[string]string{}, loaded: map[string][]byte{}}
	c.set.files = map[string][]byte{}
	for file := range k.modules {
		c.byName[moduleName(file)] = file
	}
	c.list.WriteString("# stage, need, condition, module; dependencies come first\n")
	for _, r := range roots {
		if _, packed := c.byName[r.name]; !packed && (k.builtin[r.name] || !r.required) {
			continue
		}
		if err := c.add(r.name, r, map[string]bool{}); err != nil {
			return nil, fmt.Errorf("choose kernel module %s: %w", r.name, err)
		}
	}
	c.set.order = c.list.Bytes()
	return &c.set, nil
}

// add appends a module for the root r, after what it depends on. done holds the modules of this root that are, or are
// about to be, in the list: a dependency shared with another root is listed for each, since their conditions differ, and
// the guest passes over a module that it has.
func (c *chooser) add(name string, r root, done map[string]bool) error {
	if done[name] || c.kernel.builtin[name] {
		return nil
	}
	done[name] = true
	packed, ok := c.byName[name]
	if !ok {
		return fmt.Errorf("kernel %s has no module %s: %w", c.kernel.version, name, errdefs.ErrNotFound)
	}
	data, err := c.load(name, packed)
	if err != nil {
		return fmt.Errorf("module %s: %w", name, err)
	}
	dependencies, err := depends(data)
	if err != nil {
		return fmt.Errorf("module %s: %w", name, err)
	}
	for _, dependency := range dependencies {
		if err := c.add(dependency, r, done); err != nil {
			return err
		}
	}
	file := strings.TrimSuffix(packed, path.Ext(packed))
	if path.Ext(packed) == ".ko" {
		file = packed
	}
	c.set.files[file] = data
	need := "optional"
	if r.required {
		need = "required"
	}
	line := fmt.Sprintf("%s %s %s /lib/modules/%s/%s\n", r.stage, need, r.condition, c.kernel.version, file)
	if !bytes.Contains(c.list.Bytes(), []byte("\n"+line)) {
		c.list.WriteString(line)
	}
	return nil
}

// load decompresses a module once.
func (c *chooser) load(name, packed string) ([]byte, error) {
	if data, ok := c.loaded[name]; ok {
		return data, nil
	}
	data, err := expand(strings.TrimPrefix(path.Ext(packed), "."), c.kernel.modules[packed], maxModule)
	if err != nil {
		return nil, fmt.Errorf("decompress: %w", err)
	}
	c.loaded[name] = data
	return data, nil
}

// depends reads the names of the modules that a module needs from the module itself: a package has no modules.dep
// before it is installed.
func depends(module []byte) ([]string, error) {
	in, err := elf.NewFile(bytes.NewReader(module))
	if err != nil {
		return nil, fmt.Errorf("read module: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	section := in.Section(".modinfo")
	if section == nil {
		return nil, fmt.Errorf("module has no .modinfo: %w", errdefs.ErrInvalidArgument)
	}
	info, err := section.Data()
	if err != nil {
		return nil, fmt.Errorf("read module: %w", err)
	}
	for line := range bytes.SplitSeq(info, []byte{0}) {
		list, is := strings.CutPrefix(string(line), "depends=")
		if !is || list == "" {
			continue
		}
		return strings.Split(strings.ReplaceAll(list, "-", "_"), ","), nil
	}
	return nil, nil
}
