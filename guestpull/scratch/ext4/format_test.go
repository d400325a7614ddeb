package ext4

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/integration/require"
)

var options = Options{
	UUID: [16]byte{1, 2, 3, 4}, HashSeed: [16]byte{5, 6, 7, 8}, Label: "scratch", Time: time.Unix(1_800_000_000, 0),
}

// formatted is a sparse file of size bytes with a file system on it. Before, it was full of ones wherever something was.
func formatted(t *testing.T, size int64) string {
	t.Helper()
	file, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := file.Truncate(size); err != nil {
		t.Fatal(err)
	}
	// What was on the disk before must not show through, where something is read at all.
	garbage := []byte(strings.Repeat("\xff", 4<<20))
	if _, err := file.WriteAt(garbage, 0); err != nil {
		t.Fatal(err)
	}
	if err := Format(file, size, options); err != nil {
		t.Fatal(err)
	}
	return file.Name()
}

// TestCheckersAgree lets the file system's own tool judge.
func TestCheckersAgree(t *testing.T) {
	require.Program(t, "e2fsck", "install Debian's package e2fsprogs")
	for name, size := range map[string]int64{
		"smallest":              MinSize,
		"less than a group":     100<<20 + 512,
		"a group":               128 << 20,
		"a short last group":    128<<20 + 3<<20, // is left out
		"a longer last group":   128<<20 + 5<<20,
		"many groups":           5 << 30,
		"two descriptor blocks": 20 << 30,
		"a terabyte":            1 << 40,
	} {
		t.Run(name, func(t *testing.T) {
			out, err := exec.Command("e2fsck", "-f", "-n", formatted(t, size)).CombinedOutput()
			if err != nil {
				t.Errorf("%v:\n%s", err, out)
			}
		})
	}
}

func TestFormatIsSmall(t *testing.T) {
	var st unix.Stat_t
	file := filepath.Join(t.TempDir(), "disk")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := Format(f, 1<<40, options); err != nil {
		t.Fatal(err)
	}
	if err := unix.Stat(file, &st); err != nil {
		t.Fatal(err)
	}
	if written := st.Blocks * 512; written > 1<<20 {
		t.Errorf("%d bytes are written for a disk of a terabyte", written)
	}
}

func TestFormatRefuses(t *testing.T) {
	long := options
	long.Label = "seventeen letters"
	for name, tc := range map[string]struct {
		size    int64
		options Options
	}{
		"small":      {MinSize - 1, options},
		"nothing":    {0, options},
		"negative":   {-1, options},
		"long label": {MinSize, long},
	} {
		t.Run(name, func(t *testing.T) {
			if err := Format(nil, tc.size, tc.options); !errors.Is(err, errdefs.ErrInvalidArgument) {
				t.Errorf("got %v", err)
			}
		})
	}
}
