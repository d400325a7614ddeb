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
77:x:4242:
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
		files  map[string]string
		name   string
		want   User
		strict bool
		got    User
		err    error
	}{
		"root":                       {files: usual, got: User{Groups: []uint32{0}}},
		"number fills group":         {files: usual, want: User{UID: 1000}, got: User{UID: 1000, GID: 1001, Groups: []uint32{10, 1001, 2000}}},
		"the host's group is none":   {files: usual, want: User{UID: 1000, Groups: []uint32{0, 7}}, got: User{UID: 1000, GID: 1001, Groups: []uint32{7, 10, 1001, 2000}}},
		"number keeps group":         {files: usual, want: User{UID: 1000, GID: 5, Groups: []uint32{2000, 7}}, got: User{UID: 1000, GID: 5, Groups: []uint32{5, 7, 10, 2000}}},
		"number, strict":             {files: usual, want: User{UID: 1000, Groups: []uint32{7}}, strict: true, got: User{UID: 1000, GID: 1001, Groups: []uint32{7, 1001}}},
		"unknown number":             {files: usual, want: User{UID: 77}, got: User{UID: 77}},
		"unknown number's groups":    {files: usual, want: User{UID: 77, Groups: []uint32{0, 7}}, got: User{UID: 77, Groups: []uint32{0, 7}}},
		"no files":                   {want: User{UID: 1000}, got: User{UID: 1000}},
		"name":                       {files: usual, name: "app", got: User{UID: 1000, GID: 1001, Groups: []uint32{10, 1001, 2000}}},
		"name for a stand-in":        {files: usual, name: "app", want: User{UID: maxID, GID: maxID, Groups: []uint32{0}}, got: User{UID: 1000, GID: 1001, Groups: []uint32{0, 10, 1001, 2000}}},
		"name, strict":               {files: usual, name: "app", strict: true, got: User{UID: 1000, GID: 1001, Groups: []uint32{1001}}},
		"name and group":             {files: usual, name: "app:extra", got: User{UID: 1000, GID: 2000, Groups: []uint32{10, 2000}}},
		"name and number":            {files: usual, name: "app:5", got: User{UID: 1000, GID: 5, Groups: []uint32{5, 10, 2000}}},
		"number that is also a name": {files: usual, name: "app:77", got: User{UID: 1000, GID: 77, Groups: []uint32{10, 77, 2000}}},
		"number as name":             {files: usual, name: "1000", got: User{UID: 1000, GID: 1001, Groups: []uint32{10, 1001, 2000}}},
		"number with group 0":        {files: usual, name: "1000:0", got: User{UID: 1000, GID: 0, Groups: []uint32{0, 10, 2000}}},
		"unknown as name":            {files: usual, name: "77:78", got: User{UID: 77, GID: 78, Groups: []uint32{78}}},
		"name that is missing":       {files: usual, name: "ghost", err: errdefs.ErrNotFound},
		"name without files":         {name: "app", err: errdefs.ErrNotFound},
		"group that is missing":      {files: usual, name: "app:ghost", err: errdefs.ErrNotFound},
		"group without a name":       {files: usual, name: "app:", err: errdefs.ErrNotFound},
		"name of a bad line":         {files: usual, name: "broken", err: errdefs.ErrNotFound},
		"endless file":               {files: map[string]string{"etc/passwd": strings.Repeat("x", maxUsersFile+1)}, err: errdefs.ErrInvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Resolve(image(t, test.files), test.name, test.want, test.strict)
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
	if _, err := Resolve(root, "evil", User{}, false); !errdefs.IsNotFound(err) {
		t.Errorf("link out of the image: %v", err)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(file, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Resolve(root, "", User{}, false); !errdefs.IsInvalidArgument(err) {
		t.Errorf("named pipe: %v", err)
	}
}

func FuzzResolve(f *testing.F) {
	f.Add(passwd, group, "app:extra")
	f.Fuzz(func(t *testing.T, p, g, name string) {
		got, err := Resolve(image(t, map[string]string{"etc/passwd": p, "etc/group": g}), name, User{UID: 1}, false)
		if err == nil && (got.UID > maxID || got.GID > maxID) {
			t.Errorf("id out of range: %+v", got)
		}
	})
}
