package extension

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

// blocks is a file of n blocks, each different, that looks like an EROFS file system.
func blocks(t *testing.T, n int) (string, []byte) {
	t.Helper()
	data := make([]byte, n*blockSize)
	for i := range n {
		copy(data[i*blockSize:], fmt.Sprint("block ", i))
	}
	copy(data[superblockAt:], superblockMagic)
	file := filepath.Join(t.TempDir(), "data")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return file, data
}

// rootHash computes the root of the tree as the kernel's documentation of dm-verity says, level by level.
func rootHash(data, salt []byte) []byte {
	for {
		var level []byte
		for block := range slices.Chunk(data, blockSize) {
			sum := sha256.Sum256(append(bytes.Clone(salt), block...))
			level = append(level, sum[:]...)
		}
		if len(level) == sha256.Size {
			return level
		}
		data = append(level, make([]byte, (blockSize-len(level)%blockSize)%blockSize)...)
	}
}

func TestPack(t *testing.T) {
	for name, n := range map[string]int{"one block": 1, "one level": 128, "two levels": 300} {
		t.Run(name, func(t *testing.T) {
			file, data := blocks(t, n)
			out := filepath.Join(t.TempDir(), "gpu.img")
			param, err := Pack(t.Context(), "gpu", file, out)
			if err != nil {
				t.Fatal(err)
			}
			salt := sha256.Sum256(data)
			want := fmt.Sprintf("kata.extension.gpu.verity_params=root_hash=%x,salt=%x,data_blocks=%d,data_block_size=4096,hash_block_size=4096",
				rootHash(data, salt[:]), salt, n)
			if param != want {
				t.Errorf("got  %s\nwant %s", param, want)
			}
			checkImage(t, out, data)
			again := filepath.Join(t.TempDir(), "again.img")
			if second, err := Pack(t.Context(), "gpu", file, again); err != nil || second != param {
				t.Errorf("second time: %s, %v", second, err)
			}
			first, second := read(t, out), read(t, again)
			if !bytes.Equal(first, second) {
				t.Error("the second image differs")
			}
			if left, err := os.ReadDir(filepath.Dir(out)); err != nil || len(left) != 1 {
				t.Errorf("left behind: %v, %v", left, err)
			}
		})
	}
}

func read(t *testing.T, file string) []byte {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// checkImage reads the partition table as a kernel would.
func checkImage(t *testing.T, file string, data []byte) {
	t.Helper()
	image := read(t, file)
	if image[510] != 0x55 || image[511] != 0xaa {
		t.Fatal("no partition table")
	}
	end := uint32(2048)
	for i := range 2 {
		entry := image[446+16*i:]
		start, size := binary.LittleEndian.Uint32(entry[8:]), binary.LittleEndian.Uint32(entry[12:])
		if entry[4] != 0x83 || start != end || size == 0 || size%2048 != 0 {
			t.Errorf("partition %d: type %#x, %d sectors from %d", i+1, entry[4], size, start)
		}
		end = start + size
	}
	if int(end)*512 != len(image) || !bytes.Equal(image[2048*512:2048*512+len(data)], data) {
		t.Errorf("image of %d bytes, of which partitions use %d", len(image), end*512)
	}
}

func TestPackRefuses(t *testing.T) {
	good, _ := blocks(t, 2)
	odd := filepath.Join(t.TempDir(), "odd")
	if err := os.WriteFile(odd, read(t, good)[:blockSize+1], 0o600); err != nil {
		t.Fatal(err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for name, tc := range map[string]struct {
		ctx        context.Context
		name, file string
		wantErr    error
	}{
		"no file system":    {t.Context(), "gpu", "pack_test.go", errdefs.ErrInvalidArgument},
		"part of a block":   {t.Context(), "gpu", odd, errdefs.ErrInvalidArgument},
		"no file":           {t.Context(), "gpu", odd + ".not", os.ErrNotExist},
		"no name":           {t.Context(), "", good, errdefs.ErrInvalidArgument},
		"name with a slash": {t.Context(), "a/b", good, errdefs.ErrInvalidArgument},
		"long name":         {t.Context(), strings.Repeat("a", 11), good, errdefs.ErrInvalidArgument},
		"given up":          {ended, "gpu", good, context.Canceled},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if _, err := Pack(tc.ctx, tc.name, tc.file, filepath.Join(dir, "out")); !errors.Is(err, tc.wantErr) {
				t.Errorf("got %v, want %v", err, tc.wantErr)
			}
			if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
		})
	}
}

func TestPartitionTableRefuses(t *testing.T) {
	if _, err := partitionTable([]extent{{start: align, size: 2 << 40}}); !errors.Is(err, errdefs.ErrOutOfRange) {
		t.Errorf("got %v", err)
	}
}
