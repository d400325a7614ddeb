package rootfs

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const passwd = `root:x:0:0:root:/root:/bin/sh
# a comment
broken:x:no:0
app:x:1000:1001:App:/home/app:/bin/sh
twin:x:1000:1009:::
`

const group = `root:x:0:
app:x:1001:
extra:x:2000:other,app
wheel:x:10:app
`

func image(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestResolve(t *testing.T) {
	usual := map[string]string{"etc/passwd": passwd, "etc/group": group}
	for name, test := range map[string]struct {
		files map[string]string
		name  string
		want  User
		got   User
		err   error
	}{
		"root":                  {usual, "", User{}, User{}, nil},
		"number fills group":    {usual, "", User{UID: 1000}, User{UID: 1000, GID: 1001, Groups: []uint32{10, 2000}}, nil},
		"number keeps group":    {usual, "", User{UID: 1000, GID: 5, Groups: []uint32{2000, 7}}, User{UID: 1000, GID: 5, Groups: []uint32{7, 10, 2000}}, nil},
		"unknown number":        {usual, "", User{UID: 77}, User{UID: 77}, nil},
		"no files":              {nil, "", User{UID: 1000}, User{UID: 1000}, nil},
		"name":                  {usual, "app", User{}, User{UID: 1000, GID: 1001, Groups: []uint32{10, 2000}}, nil},
		"name and group":        {usual, "app:extra", User{}, User{UID: 1000, GID: 2000, Groups: []uint32{10, 2000}}, nil},
		"name and number":       {usual, "app:5", User{}, User{UID: 1000, GID: 5, Groups: []uint32{10, 2000}}, nil},
		"number as name":        {usual, "1000", User{}, User{UID: 1000, GID: 1001, Groups: []uint32{10, 2000}}, nil},
		"unknown as name":       {usual, "77:78", User{}, User{UID: 77, GID: 78}, nil},
		"name that is missing":  {usual, "ghost", User{}, User{}, errdefs.ErrNotFound},
		"name without files":    {nil, "app", User{}, User{}, errdefs.ErrNotFound},
		"group that is missing": {usual, "app:ghost", User{}, User{}, errdefs.ErrNotFound},
		"name of a bad line":    {usual, "broken", User{}, User{}, errdefs.ErrNotFound},
		"endless file":          {map[string]string{"etc/passwd": strings.Repeat("x", maxUsersFile+1)}, "", User{}, User{}, errdefs.ErrInvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Resolve(image(t, test.files), test.name, test.want)
			if !errors.Is(err, test.err) {
				t.Fatalf("error: %v", err)
			}
			if err == nil && (got.UID != test.got.UID || got.GID != test.got.GID || len(got.Groups)+len(test.got.Groups) > 0 && !reflect.DeepEqual(got.Groups, test.got.Groups)) {
				t.Errorf("got %+v, want %+v", got, test.got)
			}
		})
	}
}

func TestUsersFileOfAHostileImage(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "passwd")
	if err := os.WriteFile(outside, []byte("evil:x:4242:4242:::"), 0o644); err != nil {
		t.Fatal(err)
	}
	root := image(t, nil)
	file := filepath.Join(root, "etc/passwd")
	if err := os.Symlink(outside, file); err != nil {
		t.Fatal(err)
	}
	if _, err := Resolve(root, "evil", User{}); !errdefs.IsNotFound(err) {
		t.Errorf("link out of the image: %v", err)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(file, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Resolve(root, "", User{}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("named pipe: %v", err)
	}
}

func FuzzResolve(f *testing.F) {
	f.Add(passwd, group, "app:extra")
	f.Fuzz(func(t *testing.T, p, g, name string) {
		got, err := Resolve(image(t, map[string]string{"etc/passwd": p, "etc/group": g}), name, User{UID: 1})
		if err == nil && (got.UID > maxID || got.GID > maxID) {
			t.Errorf("id out of range: %+v", got)
		}
	})
}
