package main

import (
	"bytes"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/coffer-project/coffer/integration/require"
)

func TestLibraries(t *testing.T) {
	ldd := "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n"
	if got, want := libraries(ldd), []string{"/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestVerdictIsTheLastWholeLine(t *testing.T) {
	v := &verdict{}
	for _, part := range []string{"one\r\ntw", "o\r\n", "a line that never en"} {
		if n, err := v.Write([]byte(part)); n != len(part) || err != nil {
			t.Errorf("write %q: %d, %v", part, n, err)
		}
	}
	if v.last() != "two" {
		t.Errorf("got %q", v.last())
	}
}

func TestMakeDisk(t *testing.T) {
	require.Program(t, "mke2fs", "apt-get install e2fsprogs")
	require.Program(t, "debugfs", "apt-get install e2fsprogs")
	folder, disk := t.TempDir(), filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(filepath.Join(folder, "file"), []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := makeDisk(t.Context(), folder, disk); err != nil {
		t.Fatal(err)
	}
	table := make([]byte, sector)
	f, err := os.Open(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.ReadAt(table, 0); err != nil {
		t.Fatal(err)
	}
	start := int64(binary.LittleEndian.Uint32(table[446+8:])) * sector
	size := int64(binary.LittleEndian.Uint32(table[446+12:])) * sector
	if info, err := f.Stat(); err != nil || start+size != info.Size() || !bytes.Equal(table[510:], []byte{0x55, 0xaa}) {
		t.Errorf("the partition is %d bytes at %d, signature %x; %v", size, start, table[510:], err)
	}
	out, err := exec.Command("debugfs", "-R", "cat /file", partitionOf(disk)).Output()
	if err != nil || string(out) != "content" {
		t.Errorf("the file system has %q, %v", out, err)
	}
}
