package block

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/integration/require"
)

func TestScratch(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "made", "scratch")
	file, err := Scratch(dir, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	if st.Size != 1<<30 || st.Blocks != 0 || st.Nlink != 0 {
		t.Errorf("the file has %d bytes, %d blocks and %d names", st.Size, st.Blocks, st.Nlink)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 0 {
		t.Errorf("the folder has %v, %v", entries, err)
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the folder is open to others: %v, %v", info.Mode(), err)
	}
}

func TestScratchRefused(t *testing.T) {
	plain := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		dir     string
		size    int64
		wantErr error
	}{
		"no folder": {plain, 1 << 20, errdefs.ErrFailedPrecondition},
		"read-only": {require.Tmpfs(t, unix.MS_RDONLY, "size=64m"), 1 << 20, errdefs.ErrFailedPrecondition},
		"too small": {require.Tmpfs(t, 0, "size=1m"), 2 << 20, errdefs.ErrResourceExhausted},
	} {
		t.Run(name, func(t *testing.T) {
			file, err := Scratch(tc.dir, tc.size)
			if !errors.Is(err, tc.wantErr) {
				t.Errorf("got %v", err)
			}
			if err == nil {
				file.Close()
			}
		})
	}
}
