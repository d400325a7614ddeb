package unpack

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/archive"
	"golang.org/x/sys/unix"

	rt "github.com/coffer-project/coffer/integration/registrytest"
	"github.com/coffer-project/coffer/integration/require"
)

// TestSparseFiles unpacks what GNU tar makes of a file with holes, in all four ways in which it can.
func TestSparseFiles(t *testing.T) {
	base := require.Tmpfs(t, 0, "")
	gnuTar := require.Program(t, "tar", "install GNU tar")
	src := filepath.Join(base, "src")
	if err := os.Mkdir(src, 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(src, "f"))
	if err != nil {
		t.Fatal(err)
	}
	// More pieces than the first header of the oldest form has room for, at even and uneven places, and a hole at the end.
	for i := range int64(40) {
		if _, err := f.WriteAt(bytes.Repeat([]byte{byte('a' + i%26)}, 5000), i*300_000+i*7); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Truncate(64 << 20); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	stamp := time.Unix(1700000000, 123456789)
	if err := os.Chtimes(f.Name(), stamp, stamp); err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	cases := map[string]struct {
		args []string
		// old is a type that containerd does not know; to us it is a file like others.
		old bool
	}{
		"GNU":     {args: []string{"--format=gnu"}, old: true},
		"PAX 0.0": {args: []string{"--format=posix", "--sparse-version=0.0"}},
		"PAX 0.1": {args: []string{"--format=posix", "--sparse-version=0.1"}},
		"PAX 1.0": {args: []string{"--format=posix", "--sparse-version=1.0"}},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			stream, err := exec.CommandContext(t.Context(), gnuTar, append(tc.args, "-S", "-C", src, "-c", "f")...).Output()
			if err != nil || len(stream) > 2<<20 {
				t.Fatalf("tar made %d bytes, %v", len(stream), err)
			}
			dir := filepath.Join(base, name)
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			if _, _, err := New(DefaultLimits()).Apply(t.Context(), dir, bytes.NewReader(stream)); err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(filepath.Join(dir, "f"))
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("content differs: %d bytes, %v", len(got), err)
			}
			var st unix.Stat_t
			if err := unix.Stat(filepath.Join(dir, "f"), &st); err != nil || st.Blocks*512 > 8<<20 {
				t.Errorf("file takes %d bytes, %v", st.Blocks*512, err)
			}
			if nano := time.Unix(st.Mtim.Unix()); !tc.old && !nano.Equal(stamp) {
				t.Errorf("time is %v, want %v", nano, stamp)
			}
			other := t.TempDir()
			_, err = archive.Apply(t.Context(), other, bytes.NewReader(stream))
			if (err != nil) != tc.old {
				t.Errorf("containerd: %v", err)
			}
			if theirs, err := os.ReadFile(filepath.Join(other, "f")); !tc.old && (err != nil || !bytes.Equal(theirs, got)) {
				t.Errorf("containerd has other content: %v", err)
			}
		})
	}
}

// TestZeroesBecomeHoles: a file that is mostly zero takes the space of the rest only, whatever the tar says.
func TestZeroesBecomeHoles(t *testing.T) {
	base := require.Tmpfs(t, 0, "")
	u := New(DefaultLimits())
	for name, at := range map[string][]int{"none": nil, "first": {0}, "last": {3<<20 - 1}, "across": {holeSize - 1, holeSize, 5*holeSize + 7, bufferSize, 2*bufferSize - 1}} {
		t.Run(name, func(t *testing.T) {
			want := make([]byte, 3<<20)
			for _, i := range at {
				want[i] = 1
			}
			dir := filepath.Join(base, name)
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			if _, _, err := u.Apply(t.Context(), dir, bytes.NewReader(fileTar(want))); err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(filepath.Join(dir, "f"))
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("content differs: %d bytes, %v", len(got), err)
			}
			var st syscall.Stat_t
			if err := syscall.Stat(filepath.Join(dir, "f"), &st); err != nil || st.Blocks*512 > int64(len(at)*holeSize) {
				t.Errorf("file takes %d bytes, %v", st.Blocks*512, err)
			}
		})
	}
}

func fileTar(body []byte) []byte { return rt.Tar(rt.Entry{Name: "f", Body: string(body)}) }
