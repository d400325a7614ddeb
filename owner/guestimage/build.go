package guestimage

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/errdefs"
)

// maxProgram bounds runc and the agent, in bytes.
const maxProgram = 256 << 20

// Inputs are the paths of what an image is made of.
type Inputs struct {
	// Kernel is a Debian linux-image package, or a directory into which one was unpacked.
	Kernel string
	// Runc is a static runc, Agent the coffer-guest program, Unpacker coffer-unpack.
	Runc, Agent, Unpacker string
}

// loaded are the inputs in memory.
type loaded struct {
	kernel                *kernel
	runc, agent, unpacker []byte
}

// Build makes the image in outDir, creating it if need be, and returns its manifest. built is false when the directory
// already holds the image of these very inputs; then nothing is written. The manifest is written last, so a directory
// with a manifest that Inspect accepts is always whole.
func Build(ctx context.Context, in Inputs, outDir string) (m *Manifest, built bool, err error) {
	inputs, err := load(in)
	if err != nil {
		return nil, false, err
	}
	digests := map[string]string{
		"kernel": inputs.kernel.digest(), "runc": digest(inputs.runc), "agent": digest(inputs.agent),
		"unpacker": digest(inputs.unpacker),
	}
	switch old, err := Inspect(ctx, outDir); {
	case err == nil && old.Builder == version && maps.Equal(old.Inputs, digests):
		return old, false, nil
	case err != nil && !errdefs.IsNotFound(err) && !errdefs.IsDataLoss(err):
		return nil, false, err
	}
	files, m, err := assemble(ctx, inputs)
	if err != nil {
		return nil, false, err
	}
	m.Inputs = digests
	if err := store(ctx, outDir, files, m); err != nil {
		return nil, false, fmt.Errorf("write guest image: %w", err)
	}
	return m, true, nil
}

func load(in Inputs) (*loaded, error) {
	var l loaded
	var err error
	if l.runc, err = loadProgram("runc", in.Runc); err != nil {
		return nil, err
	}
	if l.agent, err = loadProgram("coffer-guest", in.Agent); err != nil {
		return nil, err
	}
	if l.unpacker, err = loadProgram("coffer-unpack", in.Unpacker); err != nil {
		return nil, err
	}
	if l.kernel, err = loadKernel(in.Kernel); err != nil {
		return nil, err
	}
	return &l, nil
}

func loadProgram(name, source string) ([]byte, error) {
	f, err := os.Open(source)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	defer f.Close()
	data, err := readAll(f, maxProgram)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", source, err)
	}
	return data, checkStatic(source, data)
}

// assemble computes the image's files and describes them.
func assemble(ctx context.Context, in *loaded) (map[string][]byte, *Manifest, error) {
	whole, err := vmlinux(in.kernel.vmlinuz)
	if err != nil {
		return nil, nil, fmt.Errorf("unpack kernel %s: %w", in.kernel.version, err)
	}
	direct, err := compact(whole)
	if err != nil {
		return nil, nil, fmt.Errorf("unpack kernel %s: %w", in.kernel.version, err)
	}
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	modules, err := chooseModules(in.kernel, roots)
	if err != nil {
		return nil, nil, err
	}
	initrd, err := archive(tree(in, modules))
	if err != nil {
		return nil, nil, fmt.Errorf("pack initramfs: %w", err)
	}
	files := map[string][]byte{VmlinuxName: direct, VmlinuzName: in.kernel.vmlinuz, InitrdName: initrd}
	m := &Manifest{
		Builder: version, Kernel: in.kernel.version,
		Initrd: []Part{part("coffer-guest", in.agent), part("coffer-unpack", in.unpacker), part("runc", in.runc)},
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		m.Files = append(m.Files, part(name, files[name]))
	}
	for _, name := range slices.Sorted(maps.Keys(modules.files)) {
		m.Initrd = append(m.Initrd, part(name, modules.files[name]))
	}
	return files, m, nil
}

// store writes the files and, once they are all there, the manifest.
func store(ctx context.Context, outDir string, files map[string][]byte, m *Manifest) error {
	if err := os.MkdirAll(outDir, 0o755); err != nil {
		return err
	}
	// A build that breaks off must not leave a manifest that describes other files.
	if err := os.Remove(filepath.Join(outDir, ManifestName)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := replace(filepath.Join(outDir, name), files[name]); err != nil {
			return err
		}
	}
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	return replace(filepath.Join(outDir, ManifestName), append(text, '\n'))
}

// replace writes a file beside its place and renames it: a VM that has the old file open keeps it.
func replace(name string, data []byte) (retErr error) {
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if retErr != nil {
			retErr = errors.Join(retErr, os.Remove(f.Name()))
		}
	}()
	_, err = f.Write(data)
	// Whatever the umask says: the image is public, and shims may run as another user.
	if err := errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return os.Rename(f.Name(), name)
}
