package hostfiles

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// tree makes files with their names as content; a name that ends with a slash is a folder.
func tree(t *testing.T, dir string, names ...string) {
	t.Helper()
	for _, name := range names {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(name, "/") {
			if err := os.MkdirAll(path, 0o755); err != nil {
				t.Fatal(err)
			}
			continue
		}
		write(t, path, []byte(name), 0o600)
	}
}

// TestChangedTree changes a volume between its plan and its copy, as its owner may who is not root: nothing outside of it
// is read.
func TestChangedTree(t *testing.T) {
	secrets := filepath.Join(t.TempDir(), "secrets")
	tree(t, secrets, "file")
	replace := func(t *testing.T, path string, with func() error) {
		t.Helper()
		if err := errors.Join(os.RemoveAll(path), with()); err != nil {
			t.Fatal(err)
		}
	}
	for name, test := range map[string]struct {
		change func(t *testing.T, volume string)
		want   error
	}{
		"folder becomes a link out": {func(t *testing.T, volume string) {
			t.Helper()
			replace(t, volume+"/sub", func() error { return os.Symlink(secrets, volume+"/sub") })
		}, unix.ELOOP},
		"folder becomes a link up": {func(t *testing.T, volume string) {
			t.Helper()
			replace(t, volume+"/sub", func() error { return os.Symlink("../secrets", volume+"/sub") })
		}, unix.ELOOP},
		"folder becomes a link within": {func(t *testing.T, volume string) {
			t.Helper()
			replace(t, volume+"/sub", func() error { return os.Symlink("other", volume+"/sub") })
		}, unix.ELOOP},
		"file becomes a link": {func(t *testing.T, volume string) {
			t.Helper()
			replace(t, volume+"/sub/file", func() error { return os.Symlink(secrets+"/file", volume+"/sub/file") })
		}, unix.ELOOP},
		"file becomes a folder": {func(t *testing.T, volume string) {
			t.Helper()
			replace(t, volume+"/sub/file", func() error { return os.Mkdir(volume+"/sub/file", 0o755) })
		}, errdefs.ErrFailedPrecondition},
		"file becomes a pipe": {func(t *testing.T, volume string) {
			t.Helper()
			replace(t, volume+"/sub/file", func() error { return unix.Mkfifo(volume+"/sub/file", 0o600) })
		}, errdefs.ErrFailedPrecondition},
		"file goes": {func(t *testing.T, volume string) {
			t.Helper()
			replace(t, volume+"/sub/file", func() error { return nil })
		}, os.ErrNotExist},
		"volume becomes a link": {func(t *testing.T, volume string) {
			t.Helper()
			replace(t, volume, func() error { return os.Symlink(secrets, volume) })
		}, unix.ENOTDIR},
		"file grows": {func(t *testing.T, volume string) { t.Helper(); sparse(t, volume+"/sub/file", DefaultBytes+1) }, errdefs.ErrFailedPrecondition},
		"file grows little": {func(t *testing.T, volume string) {
			t.Helper()
			write(t, volume+"/sub/file", []byte("more than there was"), 0o600)
		}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			volume := filepath.Join(t.TempDir(), "volume")
			tree(t, volume, "sub/file", "other/file")
			jobs, err := Limits{}.Plan(volume, "/guest")
			if err != nil {
				t.Fatal(err)
			}
			test.change(t, volume)
			guest := &fakeGuest{}
			if err := Copy(t.Context(), guest, jobs); !errors.Is(err, test.want) {
				t.Errorf("error %v, want %v", err, test.want)
			}
			for path, content := range guest.files {
				if string(content) == "file" {
					t.Errorf("%s is the file outside", path)
				}
			}
		})
	}
}

// TestLinksAreCopied: links lead where they led, in loops and out of the volume too, and nothing is followed.
func TestLinksAreCopied(t *testing.T) {
	volume := t.TempDir()
	links := map[string]string{"loop": "loop", "up": "../..", "absolute": "/etc/passwd", "folder": ".", "dangling": "nowhere"}
	for name, target := range links {
		if err := os.Symlink(target, filepath.Join(volume, name)); err != nil {
			t.Fatal(err)
		}
	}
	guest := planAndCopy(t, volume)
	if len(guest.requests) != len(links)+1 {
		t.Errorf("%d requests for a folder and %d links", len(guest.requests), len(links))
	}
	for name, target := range links {
		if got := string(guest.files["/guest/v/"+name]); got != target {
			t.Errorf("link %s leads to %q, want %q", name, got, target)
		}
	}
}

// TestTooLarge: the error says how much there is, what is allowed and who can change it.
func TestTooLarge(t *testing.T) {
	many := t.TempDir()
	for _, dir := range "abcdefghij" {
		tree(t, many, string(dir)+"/1", string(dir)+"/2", string(dir)+"/3")
	}
	large := t.TempDir()
	for _, name := range []string{"1", "2", "3"} {
		sparse(t, filepath.Join(large, name), 3<<20)
	}
	for name, test := range map[string]struct {
		source string
		limits Limits
		want   []string
	}{
		"many files": {many, Limits{Entries: 8}, []string{"90 bytes in 41 files", "in 8 files", "max_copy_files"}},
		"far more":   {many, Limits{Entries: 2}, []string{"more than", "in 17 files"}},
		"large":      {large, Limits{Bytes: 4 << 20}, []string{large, "9.0 MiB in 4 files", "4.0 MiB", "max_copy_mib", "emptyDir"}},
		"one file":   {large + "/1", Limits{Bytes: 1 << 20}, []string{"3.0 MiB", "1.0 MiB"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := test.limits.Plan(test.source, "/guest")
			if !errdefs.IsFailedPrecondition(err) {
				t.Fatalf("got %v", err)
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q does not say %q", err, want)
				}
			}
		})
	}
}

func TestKernelFiles(t *testing.T) {
	for _, source := range []string{"/proc", "/proc/self/status", "/sys/kernel"} {
		if _, err := (Limits{}).Plan(source, "/guest"); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "kernel") {
			t.Errorf("%s: %v", source, err)
		}
	}
}

func TestWriteTermination(t *testing.T) {
	long := strings.Repeat("x", MaxTermination) + "the end"
	for name, test := range map[string]struct {
		make    func(t *testing.T, path string)
		message string
		want    string
		wantErr error
	}{
		"message": {func(t *testing.T, path string) { t.Helper(); write(t, path, nil, 0o666) }, "bye", "bye", nil},
		"replaces": {func(t *testing.T, path string) {
			t.Helper()
			write(t, path, []byte("a long one before"), 0o666)
		}, "bye", "bye", nil},
		"too long": {func(t *testing.T, path string) { t.Helper(); write(t, path, nil, 0o666) }, long, long[len("the end"):], nil},
		"missing":  {func(*testing.T, string) {}, "bye", "", os.ErrNotExist},
		"link": {func(t *testing.T, path string) {
			t.Helper()
			if err := os.Symlink("other", path); err != nil {
				t.Fatal(err)
			}
		}, "bye", "", errdefs.ErrFailedPrecondition},
		"second name": {func(t *testing.T, path string) {
			t.Helper()
			if err := os.Link(filepath.Join(filepath.Dir(path), "other"), path); err != nil {
				t.Fatal(err)
			}
		}, "bye", "", errdefs.ErrFailedPrecondition},
		"folder": {func(t *testing.T, path string) {
			t.Helper()
			if err := os.Mkdir(path, 0o755); err != nil {
				t.Fatal(err)
			}
		}, "bye", "", unix.EISDIR},
		"pipe": {func(t *testing.T, path string) {
			t.Helper()
			if err := unix.Mkfifo(path, 0o600); err != nil {
				t.Fatal(err)
			}
		}, "bye", "", unix.ENXIO},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, filepath.Join(dir, "other"), []byte("untouched"), 0o600)
			path := filepath.Join(dir, "5c0a1b2d")
			test.make(t, path)
			if err := WriteTermination(path, test.message); !errors.Is(err, test.wantErr) {
				t.Fatalf("error %v, want %v", err, test.wantErr)
			}
			if other, err := os.ReadFile(filepath.Join(dir, "other")); string(other) != "untouched" {
				t.Errorf("another file is %q now, %v", other, err)
			}
			if test.wantErr != nil {
				return
			}
			if got, err := os.ReadFile(path); string(got) != test.want {
				t.Errorf("%d bytes, %v, want %d", len(got), err, len(test.want))
			}
		})
	}
}
