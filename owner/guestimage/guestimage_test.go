package guestimage

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/zstd"
)

// le writes structures of fixed size one after another.
func le(parts ...any) []byte {
	var out bytes.Buffer
	for _, p := range parts {
		if b, ok := p.([]byte); ok {
			out.Write(b)
			continue
		}
		put(&out, p)
	}
	return out.Bytes()
}

// fakeVmlinux is an ELF kernel: a segment with a hole of zeros in it, and the PVH note if asked for.
func fakeVmlinux(pvh bool) []byte {
	text := slices.Concat(bytes.Repeat([]byte{1}, 5000), make([]byte, 200<<10), bytes.Repeat([]byte{2}, 3000), make([]byte, 100<<10))
	kind := uint32(1)
	if pvh {
		kind = notePVH
	}
	note := le(uint32(4), uint32(8), kind, []byte("Xen\x00"), uint64(0x1000000))
	header := elf.Header64{
		Type: uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: 1, Entry: 0x1000000,
		Phoff: elfHeaderSize, Ehsize: elfHeaderSize, Phentsize: progHeaderSize, Phnum: 2,
	}
	copy(header.Ident[:], []byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), 1})
	start := uint64(pageSize)
	load := elf.Prog64{Type: uint32(elf.PT_LOAD), Flags: 5, Off: start, Vaddr: 0xffffffff81000000, Paddr: 0x1000000,
		Filesz: uint64(len(text)), Memsz: uint64(len(text)) + 8192, Align: 0x200000}
	noteAt := elf.Prog64{Type: uint32(elf.PT_NOTE), Off: start + uint64(len(text)), Filesz: uint64(len(note)), Memsz: uint64(len(note)), Align: 4}
	out := le(header, load, noteAt)
	return slices.Concat(out, make([]byte, pageSize-len(out)), text, note)
}

// fakeBzImage packs a kernel as the kernel's build does.
func fakeBzImage(t *testing.T, kernel []byte, compression string) []byte {
	t.Helper()
	var packed bytes.Buffer
	switch compression {
	case "zst":
		w, err := zstd.NewWriter(&packed)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(kernel); err != nil {
			t.Fatal(err)
		}
		w.Close()
		put(&packed, uint32(len(kernel)))
	case "gz":
		w := gzip.NewWriter(&packed)
		if _, err := w.Write(kernel); err != nil {
			t.Fatal(err)
		}
		w.Close()
	default:
		packed.WriteString("\x02\x21\x4c\x18 lz4 payload")
	}
	image := make([]byte, 3*sectorSize+100)
	image[offSetupSects] = 2
	copy(image[offMagic:], "HdrS")
	binary.LittleEndian.PutUint16(image[offVersion:], 0x20f)
	binary.LittleEndian.PutUint32(image[offPayloadOffset:], 100)
	binary.LittleEndian.PutUint32(image[offPayloadLength:], uint32(packed.Len()))
	return append(image, append(packed.Bytes(), "trailer"...)...)
}

// memory is what a loader makes of a kernel: the non-zero bytes by physical address.
func memory(t *testing.T, kernel []byte) (bytes map[uint64]byte, end uint64) {
	t.Helper()
	in, err := elf.NewFile(strings.NewReader(string(kernel)))
	if err != nil {
		t.Fatal(err)
	}
	bytes = map[uint64]byte{}
	for _, p := range in.Progs {
		if p.Type != elf.PT_LOAD {
			continue
		}
		data, err := readAll(p.Open(), 1<<30)
		if err != nil {
			t.Fatal(err)
		}
		for i, b := range data {
			if b != 0 {
				bytes[p.Paddr+uint64(i)] = b
			}
		}
		end = max(end, p.Paddr+p.Memsz)
	}
	return bytes, end
}

func TestKernelExtraction(t *testing.T) {
	kernel := fakeVmlinux(true)
	for _, compression := range []string{"zst", "gz"} {
		t.Run(compression, func(t *testing.T) {
			got, err := vmlinux(fakeBzImage(t, kernel, compression))
			if err != nil || !bytes.Equal(got, kernel) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		})
	}
	small, err := compact(kernel)
	if err != nil {
		t.Fatal(err)
	}
	if len(small) > len(kernel)/4 {
		t.Errorf("compact kernel has %d of %d bytes", len(small), len(kernel))
	}
	wantBytes, wantEnd := memory(t, kernel)
	gotBytes, gotEnd := memory(t, small)
	if gotEnd != wantEnd || len(gotBytes) != len(wantBytes) {
		t.Errorf("memory differs: %d bytes up to %#x, want %d up to %#x", len(gotBytes), gotEnd, len(wantBytes), wantEnd)
	}
	for at, b := range wantBytes {
		if gotBytes[at] != b {
			t.Fatalf("memory differs at %#x", at)
		}
	}
	if in, err := elf.NewFile(bytes.NewReader(small)); err != nil || !hasPVH(in) || in.Entry != 0x1000000 {
		t.Errorf("compact kernel lost its entry: %v", err)
	}
}

func TestKernelRefusals(t *testing.T) {
	good := fakeBzImage(t, fakeVmlinux(true), "zst")
	change := func(at int, b ...byte) []byte { out := slices.Clone(good); copy(out[at:], b); return out }
	tests := map[string]struct {
		image   []byte
		wantErr error
	}{
		"empty":            {nil, errdefs.ErrInvalidArgument},
		"no bzImage":       {change(offMagic, 'x'), errdefs.ErrInvalidArgument},
		"old protocol":     {change(offVersion, 7, 2), errdefs.ErrInvalidArgument},
		"payload outside":  {change(offPayloadLength, 0xff, 0xff, 0xff, 0xff), errdefs.ErrInvalidArgument},
		"offset overflows": {change(offPayloadOffset, 0xff, 0xff, 0xff, 0xff), errdefs.ErrInvalidArgument},
		"tiny payload":     {change(offPayloadLength, 1, 0, 0, 0), errdefs.ErrInvalidArgument},
		"wrong size":       {change(len(good)-len("trailer")-4, 1, 2, 3, 4), errdefs.ErrDataLoss},
		"lz4":              {fakeBzImage(t, nil, "lz4"), errdefs.ErrNotImplemented},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if _, err := vmlinux(tt.image); !errors.Is(err, tt.wantErr) {
				t.Errorf("error %v, want %v", err, tt.wantErr)
			}
		})
	}
	if _, err := compact(fakeVmlinux(false)); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("kernel without PVH: %v", err)
	}
}

func TestArchive(t *testing.T) {
	got, err := archive([]entry{file("d/f", 0o640, []byte("hello")), dir("d", 0o755), link("l", "/d"), char("c", 0o600, 5, 1)})
	if err != nil {
		t.Fatal(err)
	}
	header := func(inode, mode, links, size, major, minor, name int) string {
		return fmt.Sprintf("070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X", inode, mode, 0, 0, links, 0, size, 0, 0, major, minor, name, 0)
	}
	want := header(1, 0o020600, 1, 0, 5, 1, 2) + "c\x00" +
		header(2, 0o040755, 2, 0, 0, 0, 2) + "d\x00" +
		header(3, 0o100640, 1, 5, 0, 0, 4) + "d/f\x00\x00\x00" + "hello\x00\x00\x00" +
		header(4, 0o120777, 1, 2, 0, 0, 2) + "l\x00" + "/d\x00\x00" +
		header(0, 0, 1, 0, 0, 0, 11) + "TRAILER!!!\x00\x00\x00\x00"
	if string(got) != lowerHex(want) {
		t.Errorf("got\n%q, want\n%q", got, want)
	}
	bad := map[string][]entry{
		"twice":     {dir("d", 0o755), dir("d", 0o755)},
		"orphan":    {file("d/f", 0o644, nil)},
		"absolute":  {file("/f", 0o644, nil)},
		"climbing":  {file("../f", 0o644, nil)},
		"unclean":   {dir("d", 0o755), file("d//f", 0o644, nil)},
		"in a file": {file("d", 0o644, nil), file("d/f", 0o644, nil)},
	}
	for name, entries := range bad {
		if _, err := archive(entries); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// lowerHex lowers the headers of the golden archive; names and contents in it have no capitals but the trailer's.
func lowerHex(s string) string {
	return strings.ReplaceAll(strings.ToLower(s), "trailer!!!", "TRAILER!!!")
}

// fakeModule is an ELF object with a .modinfo.
func fakeModule(depends string) []byte {
	info := []byte("license=GPL\x00depends=" + depends + "\x00name=x\x00")
	names := []byte("\x00.modinfo\x00.shstrtab\x00")
	header := elf.Header64{Type: uint16(elf.ET_REL), Machine: uint16(elf.EM_X86_64), Version: 1, Ehsize: elfHeaderSize,
		Shoff: uint64(elfHeaderSize + len(info) + len(names)), Shentsize: 64, Shnum: 3, Shstrndx: 2}
	copy(header.Ident[:], []byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), 1})
	return le(header, info, names,
		elf.Section64{}, elf.Section64{Name: 1, Type: uint32(elf.SHT_PROGBITS), Off: elfHeaderSize, Size: uint64(len(info))},
		elf.Section64{Name: 10, Type: uint32(elf.SHT_STRTAB), Off: uint64(elfHeaderSize + len(info)), Size: uint64(len(names))})
}

func TestChooseModules(t *testing.T) {
	k := &kernel{version: "6", builtin: map[string]bool{"virtio": true}, modules: map[string][]byte{
		"kernel/a/one.ko": fakeModule("two-b,virtio"), "kernel/two_b.ko": fakeModule("three"), "kernel/three.ko": fakeModule(""),
		"kernel/loop1.ko": fakeModule("loop2"), "kernel/loop2.ko": fakeModule("loop1"), "kernel/lost.ko": fakeModule("nowhere"),
	}}
	set, err := chooseModules(k, []root{
		{"one", "devices", true, "-"}, {"virtio", "devices", true, "-"}, {"absent", "devices", false, "-"},
		{"three", "devices", true, "-"}, {"two_b", "storage", false, "cpu:x"}, {"loop1", "storage", true, "-"},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := `# stage, need, condition, module; dependencies come first
devices required - /lib/modules/6/kernel/three.ko
devices required - /lib/modules/6/kernel/two_b.ko
devices required - /lib/modules/6/kernel/a/one.ko
storage optional cpu:x /lib/modules/6/kernel/three.ko
storage optional cpu:x /lib/modules/6/kernel/two_b.ko
storage required - /lib/modules/6/kernel/loop2.ko
storage required - /lib/modules/6/kernel/loop1.ko
`
	if string(set.order) != want || len(set.files) != 5 {
		t.Errorf("got %d files and\n%s", len(set.files), set.order)
	}
	for _, name := range []string{"absent", "lost"} {
		if _, err := chooseModules(k, []root{{name, "devices", true, "-"}}); !errdefs.IsNotFound(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// fakeDeb packs a kernel package, its files in the order given.
func fakeDeb(t *testing.T, names []string, files map[string][]byte) []byte {
	t.Helper()
	var data bytes.Buffer
	z, err := zstd.NewWriter(&data)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(z)
	for _, name := range names {
		if err := w.WriteHeader(&tar.Header{Name: "./" + name, Mode: 0o600, Size: int64(len(files[name])), ModTime: time.Now()}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(files[name]); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	out := bytes.NewBufferString(arMagic)
	for _, m := range []struct {
		name string
		body []byte
	}{{"debian-binary", []byte("2.0\n")}, {"control.tar", []byte("odd")}, {"data.tar.zst", data.Bytes()}} {
		fmt.Fprintf(out, "%-16s%-12d%-6d%-6d%-8s%-10d`\n", m.name, time.Now().Unix(), 0, 0, "100644", len(m.body))
		out.Write(m.body)
		if len(m.body)%2 == 1 {
			out.WriteByte('\n')
		}
	}
	return out.Bytes()
}

// fakeKernel is a package that has all of roots.
func fakeKernel(t *testing.T) map[string][]byte {
	t.Helper()
	files := map[string][]byte{
		"boot/vmlinuz-6.1-test":                fakeBzImage(t, fakeVmlinux(true), "zst"),
		"lib/modules/6.1-test/modules.builtin": []byte("kernel/drivers/virtio/virtio.ko\n"),
		"usr/share/doc/readme":                 []byte("x"),
	}
	for _, r := range roots {
		files["lib/modules/6.1-test/kernel/"+r.name+".ko"] = fakeModule("virtio")
	}
	return files
}

func write(t *testing.T, name string, data []byte, perm os.FileMode) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, data, perm); err != nil {
		t.Fatal(err)
	}
	return name
}

// inputs writes a package and programs with the permissions and time.
func inputs(t *testing.T, perm os.FileMode, at time.Time) Inputs {
	t.Helper()
	top := t.TempDir()
	files := fakeKernel(t)
	var names []string
	for name := range files { // in random order
		names = append(names, name)
	}
	in := Inputs{
		Kernel:   write(t, filepath.Join(top, "linux.deb"), fakeDeb(t, names, files), perm),
		Runc:     write(t, filepath.Join(top, "runc"), fakeVmlinux(false), perm),
		Agent:    write(t, filepath.Join(top, "agent"), fakeVmlinux(true), perm),
		Unpacker: write(t, filepath.Join(top, "unpacker"), append(fakeVmlinux(true), 2), perm),
	}
	for _, name := range []string{in.Kernel, in.Runc, in.Agent, in.Unpacker} {
		if err := os.Chtimes(name, at, at); err != nil {
			t.Fatal(err)
		}
	}
	return in
}

func build(t *testing.T, in Inputs, out string) (*Manifest, bool) {
	t.Helper()
	m, built, err := Build(t.Context(), in, out)
	if err != nil {
		t.Fatal(err)
	}
	return m, built
}

func TestReproducible(t *testing.T) {
	one := t.TempDir()
	build(t, inputs(t, 0o600, time.Unix(1, 0)), one)

	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	two := filepath.Join(t.TempDir(), "made", "on demand")
	build(t, inputs(t, 0o755, time.Now()), two)

	// And from an unpacked package.
	three, tree := t.TempDir(), t.TempDir()
	in := inputs(t, 0o644, time.Unix(1e9, 0))
	for name, data := range fakeKernel(t) {
		write(t, filepath.Join(tree, name), data, 0o640)
	}
	in.Kernel = tree
	build(t, in, three)

	for _, name := range []string{VmlinuxName, VmlinuzName, InitrdName, ManifestName} {
		want, err := os.ReadFile(filepath.Join(one, name))
		if err != nil || len(want) == 0 {
			t.Fatal(name, err)
		}
		for _, dir := range []string{two, three} {
			if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s in %s differs: %v", name, dir, err)
			}
			if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode() != 0o644 {
				t.Errorf("%s: %v, %v", name, info.Mode(), err)
			}
		}
	}
}

func TestCache(t *testing.T) {
	in, out := inputs(t, 0o644, time.Now()), t.TempDir()
	first, built := build(t, in, out)
	if !built {
		t.Error("the first build did nothing")
	}
	changes := map[string]struct {
		change func()
		want   bool
	}{
		"1 nothing":           {func() {}, false},
		"2 a file is damaged": {func() { write(t, filepath.Join(out, InitrdName), []byte("x"), 0o644) }, true},
		"3 nothing again":     {func() {}, false},
		"4 a file is gone":    {func() { os.Remove(filepath.Join(out, VmlinuzName)) }, true},
		"5 manifest is junk":  {func() { write(t, filepath.Join(out, ManifestName), []byte("{"), 0o644) }, true},
		"6 another agent":     {func() { write(t, in.Agent, append(fakeVmlinux(true), 1), 0o644) }, true},
		"7 another unpacker":  {func() { write(t, in.Unpacker, append(fakeVmlinux(true), 3), 0o644) }, true},
	}
	names := make([]string, 0, len(changes))
	for name := range changes {
		names = append(names, name)
	}
	slices.Sort(names)
	var last *Manifest
	for _, name := range names {
		changes[name].change()
		m, built := build(t, in, out)
		if built != changes[name].want {
			t.Errorf("%s: built %t", name, built)
		}
		if _, err := Inspect(t.Context(), out); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		last = m
	}
	if last.Inputs["agent"] == first.Inputs["agent"] || last.Inputs["runc"] != first.Inputs["runc"] {
		t.Errorf("inputs %v, were %v", last.Inputs, first.Inputs)
	}
}

func TestInspectRefusals(t *testing.T) {
	if _, err := Inspect(t.Context(), t.TempDir()); !errdefs.IsNotFound(err) {
		t.Errorf("empty directory: %v", err)
	}
	out := t.TempDir()
	write(t, filepath.Join(out, ManifestName), []byte(`{"files":[{"name":"../secret"}]}`), 0o644)
	if _, err := Inspect(t.Context(), out); !errdefs.IsDataLoss(err) {
		t.Errorf("manifest that climbs: %v", err)
	}
}

func TestBadInputs(t *testing.T) {
	dynamic := fakeVmlinux(true)
	binary.LittleEndian.PutUint32(dynamic[elfHeaderSize+progHeaderSize:], uint32(elf.PT_INTERP))
	tests := map[string]struct {
		change func(t *testing.T, in *Inputs)
		want   error
	}{
		"no kernel":     {func(_ *testing.T, in *Inputs) { in.Kernel += ".not" }, os.ErrNotExist},
		"no package":    {func(t *testing.T, in *Inputs) { write(t, in.Kernel, []byte("hello"), 0o644) }, errdefs.ErrInvalidArgument},
		"empty package": {func(t *testing.T, in *Inputs) { write(t, in.Kernel, fakeDeb(t, nil, nil), 0o644) }, errdefs.ErrNotFound},
		"cut package":   {func(t *testing.T, in *Inputs) { write(t, in.Kernel, []byte(arMagic), 0o644) }, errdefs.ErrInvalidArgument},
		"script runc":   {func(t *testing.T, in *Inputs) { write(t, in.Runc, []byte("#!/bin/sh\n"), 0o644) }, errdefs.ErrInvalidArgument},
		"dynamic agent": {func(t *testing.T, in *Inputs) { write(t, in.Agent, dynamic, 0o644) }, errdefs.ErrInvalidArgument},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			in, out := inputs(t, 0o644, time.Now()), t.TempDir()
			tt.change(t, &in)
			if _, _, err := Build(t.Context(), in, out); !errors.Is(err, tt.want) {
				t.Errorf("error %v, want %v", err, tt.want)
			}
			if left, _ := os.ReadDir(out); len(left) != 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

func FuzzDeb(f *testing.F) {
	f.Add([]byte(arMagic + strings.Repeat(" ", 60)))
	f.Fuzz(func(_ *testing.T, data []byte) {
		k := &kernel{modules: map[string][]byte{}, builtin: map[string]bool{}}
		_ = readDeb(bytes.NewReader(data), k.add)
	})
}

func FuzzVmlinux(f *testing.F) {
	f.Add(fakeVmlinux(true))
	f.Fuzz(func(_ *testing.T, data []byte) {
		_, _ = vmlinux(data)
		_, _ = compact(data)
		_, _ = depends(data)
	})
}
