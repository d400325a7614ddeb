package qemu

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"github.com/coffer-project/coffer/integration/require"
	"github.com/coffer-project/coffer/shim/vm"
)

const qemuBinary = "/usr/bin/qemu-system-x86_64"

// guestModules are what the test guest needs beside what Debian's cloud kernel has built in, in load order.
var guestModules = []string{"virtio_blk", "failover", "net_failover", "virtio_net", "pvpanic", "pvpanic-pci"}

// guest is a kernel and an initrd with testdata/init, made once per run of the tests.
type guest struct{ kernel, initrd string }

// builtGuest is the guest once it is made, and why it could not be.
var builtGuest struct {
	once sync.Once
	guest
	err error
}

// buildDir holds what is made anew for each run of the tests.
var buildDir string

func TestMain(m *testing.M) {
	if os.Getenv(orphanEnv) != "" {
		orphanMain()
		return
	}
	var err error
	if buildDir, err = os.MkdirTemp("", "coffer-qemu-test"); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(buildDir)
	os.Exit(code)
}

func needGuest(tb testing.TB) guest {
	tb.Helper()
	require.VM(tb)
	require.Program(tb, "dpkg-deb", "install Debian's package dpkg")
	pkg := require.Cached(tb, "kernel/linux-image-*.deb")
	builtGuest.once.Do(func() { builtGuest.guest, builtGuest.err = makeGuest(pkg) })
	if builtGuest.err != nil {
		tb.Fatalf("make the test guest: %v", builtGuest.err)
	}
	return builtGuest.guest
}

// makeGuest keeps the kernel beside its package's folder: to unpack it takes seconds.
func makeGuest(pkg string) (guest, error) {
	cache := filepath.Dir(filepath.Dir(pkg))
	dir := filepath.Join(cache, "test-guest", strings.TrimSuffix(filepath.Base(pkg), ".deb"))
	if err := unpackKernel(pkg, dir); err != nil {
		return guest{}, err
	}
	g := guest{kernel: filepath.Join(dir, "vmlinux"), initrd: filepath.Join(buildDir, "initrd.cpio")}
	return g, makeInitrd(dir, g.initrd)
}

// unpackKernel puts vmlinux and the modules of a Debian kernel package into dir, unless they are there.
func unpackKernel(pkg, dir string) error {
	complete := true
	for _, name := range append([]string{"vmlinux"}, guestModules...) {
		file := filepath.Join(dir, name)
		if name != "vmlinux" {
			file += ".ko"
		}
		_, err := os.Stat(file)
		complete = complete && err == nil
	}
	if complete {
		return nil
	}
	if err := os.RemoveAll(dir); err != nil { // made by an earlier version of this list
		return err
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	work, err := os.MkdirTemp(filepath.Dir(dir), ".unpack")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	tree, out := filepath.Join(work, "tree"), filepath.Join(work, "out")
	if text, err := exec.Command("dpkg-deb", "-x", pkg, tree).CombinedOutput(); err != nil {
		return fmt.Errorf("dpkg-deb: %w: %s", err, text)
	}
	if err := os.Mkdir(out, 0o755); err != nil {
		return err
	}
	images, _ := filepath.Glob(filepath.Join(tree, "boot/vmlinuz-*"))
	if len(images) != 1 {
		return fmt.Errorf("kernels in %s: %v", pkg, images)
	}
	if err := extractKernel(images[0], filepath.Join(out, "vmlinux")); err != nil {
		return err
	}
	err = filepath.WalkDir(tree, func(path string, _ os.DirEntry, err error) error {
		for _, name := range guestModules {
			if err == nil && filepath.Base(path) == name+".ko.xz" {
				err = unxz(path, filepath.Join(out, name+".ko"))
			}
		}
		return err
	})
	if err != nil {
		return err
	}
	if err := os.Rename(out, dir); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return nil
}

// extractKernel takes the ELF file out of a bzImage: a zstd stream whose place the setup header tells, followed by the
// length of what is in it.
func extractKernel(path, to string) error {
	image, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	word := func(at int) int { return int(binary.LittleEndian.Uint32(image[at:])) }
	begin := (int(image[0x1f1])+1)*512 + word(0x248)
	payload := image[begin : begin+word(0x24c)]
	size := binary.LittleEndian.Uint32(payload[len(payload)-4:])
	decoder, err := zstd.NewReader(bytes.NewReader(payload))
	if err != nil {
		return err
	}
	defer decoder.Close()
	return writeAll(to, io.LimitReader(decoder, int64(size)))
}

func unxz(path, to string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	decoder, err := xz.NewReader(file)
	if err != nil {
		return err
	}
	return writeAll(to, decoder)
}

func writeAll(path string, r io.Reader) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = io.Copy(file, r)
	return errors.Join(err, file.Close())
}

// makeInitrd builds testdata/init and packs it with the modules as a newc archive.
func makeInitrd(modules, to string) error {
	binary := filepath.Join(buildDir, "init")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", binary, "./testdata/init")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build test init: %w: %s", err, text)
	}
	var archive bytes.Buffer
	add := func(name string, mode uint32, data []byte) {
		fmt.Fprintf(&archive, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
			0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0, name)
		archive.Write(make([]byte, -archive.Len()&3))
		archive.Write(data)
		archive.Write(make([]byte, -archive.Len()&3))
	}
	add("modules", 0o40755, nil)
	for i, name := range guestModules {
		data, err := os.ReadFile(filepath.Join(modules, name+".ko"))
		if err != nil {
			return err
		}
		add(fmt.Sprintf("modules/%02d-%s.ko", i, name), 0o100644, data)
	}
	data, err := os.ReadFile(binary)
	if err != nil {
		return err
	}
	add("init", 0o100755, data)
	add("TRAILER!!!", 0, nil)
	return os.WriteFile(to, archive.Bytes(), 0o644)
}

func testOptions(t *testing.T) Options {
	t.Helper()
	return Options{
		Binary: qemuBinary, Accelerator: TCG, Transport: Serial, Seccomp: true,
		ConsoleLines: 100, ShutdownGrace: 5 * time.Second, ProbeTimeout: 10 * time.Second, CacheDir: t.TempDir(),
	}
}

func newDriver(t *testing.T, change func(*Options)) *Driver {
	t.Helper()
	options := testOptions(t)
	if change != nil {
		change(&options)
	}
	driver, err := NewDriver(options)
	if err != nil {
		t.Fatal(err)
	}
	return driver
}

func (g guest) config(tb testing.TB) vm.Config {
	tb.Helper()
	return vm.Config{
		ID: "test", StateDir: tb.TempDir(), VCPUs: 1, MemoryMiB: 256, Kernel: g.kernel, Initrd: g.initrd,
	}
}
