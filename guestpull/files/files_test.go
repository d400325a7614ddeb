package files

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	agentpb "github.com/coffer-project/coffer/proto/agent"
	guestpb "github.com/coffer-project/coffer/proto/guestpull/v1"
)

// base makes a receiver with 1 MiB of room and returns the directory that its requests name. The receiver's files belong
// to whoever runs the test, since only root can give them away.
func base(t *testing.T) (*Receiver, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "shared", "containers")
	r := newReceiver(dir, 1<<20)
	t.Cleanup(func() {
		if r.root != nil {
			r.root.Close()
		}
	})
	return r, dir
}

func piece(path string, size, offset int64, data string) *agentpb.CopyFileRequest {
	return &agentpb.CopyFileRequest{
		Path: path, FileSize: size, FileMode: unix.S_IFREG | 0o640, DirMode: 0o750, Offset: offset, Data: []byte(data),
		Uid: int32(os.Getuid()), Gid: int32(os.Getgid()),
	}
}

func link(path, target string) *agentpb.CopyFileRequest {
	q := piece(path, 0, 0, target)
	q.FileMode = unix.S_IFLNK | 0o777
	return q
}

func folder(path string, mode uint32) *agentpb.CopyFileRequest {
	q := piece(path, 0, 0, "")
	q.FileMode = unix.S_IFDIR | mode
	return q
}

func mustCopy(t *testing.T, r *Receiver, requests ...*agentpb.CopyFileRequest) {
	t.Helper()
	for _, q := range requests {
		if err := r.CopyFile(t.Context(), q); err != nil {
			t.Fatal(err)
		}
	}
}

func TestFile(t *testing.T) {
	r, dir := base(t)
	name := dir + "/vol/a/file"
	mustCopy(t, r, piece(name, 10, 0, "01234"))
	if _, err := os.Lstat(name); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("an unfinished file is visible: %v", err)
	}
	mustCopy(t, r, piece(name, 10, 5, "56789"))
	want := map[string]struct {
		mode    fs.FileMode
		content string
	}{
		"vol":        {fs.ModeDir | 0o750, ""},
		"vol/a":      {fs.ModeDir | 0o750, ""},
		"vol/a/file": {0o640, "0123456789"},
	}
	for rel, w := range want {
		info, err := os.Lstat(filepath.Join(dir, rel))
		if err != nil || info.Mode() != w.mode {
			t.Errorf("%s: %v, %v, want %v", rel, info.Mode(), err, w.mode)
		}
		if w.content == "" {
			continue
		}
		if got, err := os.ReadFile(filepath.Join(dir, rel)); string(got) != w.content {
			t.Errorf("%s: %q, %v", rel, got, err)
		}
	}
	t.Run("replaced when whole", func(t *testing.T) {
		mustCopy(t, r, piece(name, 4, 0, "ne"))
		if got, _ := os.ReadFile(name); string(got) != "0123456789" {
			t.Errorf("replaced too early: %q", got)
		}
		mustCopy(t, r, piece(name, 3, 0, "new"))
		if got, _ := os.ReadFile(name); string(got) != "new" {
			t.Errorf("got %q", got)
		}
		if r.bytes != 3 {
			t.Errorf("%d bytes are counted", r.bytes)
		}
	})
	t.Run("empty", func(t *testing.T) {
		mustCopy(t, r, piece(dir+"/empty", 0, 0, ""))
		if info, err := os.Lstat(dir + "/empty"); err != nil || info.Size() != 0 {
			t.Errorf("%v, %v", info, err)
		}
	})
	t.Run("set-user-id is dropped", func(t *testing.T) {
		q := piece(dir+"/suid", 1, 0, "x")
		q.FileMode |= 0o6000
		mustCopy(t, r, q)
		if info, err := os.Lstat(dir + "/suid"); err != nil || info.Mode() != 0o640 {
			t.Errorf("%v, %v", info.Mode(), err)
		}
	})
	if left, err := os.ReadDir(filepath.Join(dir, incoming)); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestVolume does what kubelet's updates of a config map look like.
func TestVolume(t *testing.T) {
	r, dir := base(t)
	vol := dir + "/vol"
	mustCopy(t, r,
		folder(vol, 0o2755), folder(vol+"/..1", 0o755), piece(vol+"/..1/key", 3, 0, "old"),
		link(vol+"/..data", "..1"), link(vol+"/key", "..data/key"),
		folder(vol+"/..2", 0o755), piece(vol+"/..2/key", 3, 0, "new"), link(vol+"/..data", "..2"), folder(vol, 0o2755))
	if got, err := os.ReadFile(vol + "/key"); string(got) != "new" {
		t.Errorf("got %q, %v", got, err)
	}
	if info, err := os.Lstat(vol); err != nil || info.Mode() != fs.ModeDir|fs.ModeSetgid|0o755 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

func TestHostile(t *testing.T) {
	tests := map[string]struct {
		// first are requests that succeed.
		first   func(dir string) []*agentpb.CopyFileRequest
		then    func(dir string) *agentpb.CopyFileRequest
		wantErr error
	}{
		"elsewhere":      {nil, func(string) *agentpb.CopyFileRequest { return piece("/etc/passwd", 1, 0, "x") }, errdefs.ErrInvalidArgument},
		"relative":       {nil, func(string) *agentpb.CopyFileRequest { return piece("a", 1, 0, "x") }, errdefs.ErrInvalidArgument},
		"the folder":     {nil, func(d string) *agentpb.CopyFileRequest { return folder(d, 0o777) }, errdefs.ErrInvalidArgument},
		"climbs":         {nil, func(d string) *agentpb.CopyFileRequest { return piece(d+"/a/../../../x", 1, 0, "x") }, errdefs.ErrInvalidArgument},
		"climbs at end":  {nil, func(d string) *agentpb.CopyFileRequest { return piece(d+"/..", 1, 0, "x") }, errdefs.ErrInvalidArgument},
		"sibling":        {nil, func(d string) *agentpb.CopyFileRequest { return piece(d+"2/x", 1, 0, "x") }, errdefs.ErrInvalidArgument},
		"reserved":       {nil, func(d string) *agentpb.CopyFileRequest { return piece(d+"/.incoming/x", 1, 0, "x") }, errdefs.ErrInvalidArgument},
		"zero byte":      {nil, func(d string) *agentpb.CopyFileRequest { return piece(d+"/a\x00b", 1, 0, "x") }, errdefs.ErrInvalidArgument},
		"long name":      {nil, func(d string) *agentpb.CopyFileRequest { return piece(d+"/"+strings.Repeat("n", 256), 1, 0, "x") }, errdefs.ErrInvalidArgument},
		"deep":           {nil, func(d string) *agentpb.CopyFileRequest { return piece(d+strings.Repeat("/d", 65), 1, 0, "x") }, errdefs.ErrInvalidArgument},
		"negative owner": {nil, func(d string) *agentpb.CopyFileRequest { q := piece(d+"/x", 1, 0, "x"); q.Uid = -1; return q }, errdefs.ErrInvalidArgument},
		"device": {nil, func(d string) *agentpb.CopyFileRequest {
			q := piece(d+"/x", 1, 0, "x")
			q.FileMode = unix.S_IFCHR
			return q
		}, errdefs.ErrInvalidArgument},
		"negative size":   {nil, func(d string) *agentpb.CopyFileRequest { return piece(d+"/x", -1, 0, "") }, errdefs.ErrInvalidArgument},
		"negative offset": {nil, func(d string) *agentpb.CopyFileRequest { return piece(d+"/x", 1, -1, "x") }, errdefs.ErrInvalidArgument},
		"beyond the end":  {nil, func(d string) *agentpb.CopyFileRequest { return piece(d+"/x", 1, 0, "xy") }, errdefs.ErrInvalidArgument},
		"far beyond":      {nil, func(d string) *agentpb.CopyFileRequest { return piece(d+"/x", 1<<62, 1<<62, "xy") }, errdefs.ErrInvalidArgument},
		"no bytes":        {nil, func(d string) *agentpb.CopyFileRequest { return piece(d+"/x", 5, 0, "") }, errdefs.ErrInvalidArgument},
		"too large":       {nil, func(d string) *agentpb.CopyFileRequest { return piece(d+"/x", 1<<20+1, 0, "x") }, errdefs.ErrResourceExhausted},
		"too large in all": {func(d string) []*agentpb.CopyFileRequest {
			return []*agentpb.CopyFileRequest{piece(d+"/a", 1<<19, 0, "x"), piece(d+"/b", 1<<19-1, 0, "x")}
		}, func(d string) *agentpb.CopyFileRequest { return piece(d+"/c", 2, 0, "x") }, errdefs.ErrResourceExhausted},
		"not begun": {nil, func(d string) *agentpb.CopyFileRequest { return piece(d+"/x", 5, 1, "x") }, errdefs.ErrFailedPrecondition},
		"a hole": {func(d string) []*agentpb.CopyFileRequest { return []*agentpb.CopyFileRequest{piece(d+"/x", 5, 0, "x")} },
			func(d string) *agentpb.CopyFileRequest { return piece(d+"/x", 5, 2, "x") }, errdefs.ErrFailedPrecondition},
		"another size": {func(d string) []*agentpb.CopyFileRequest { return []*agentpb.CopyFileRequest{piece(d+"/x", 5, 0, "x")} },
			func(d string) *agentpb.CopyFileRequest { return piece(d+"/x", 6, 1, "x") }, errdefs.ErrFailedPrecondition},
		"file over folder": {func(d string) []*agentpb.CopyFileRequest { return []*agentpb.CopyFileRequest{folder(d+"/x", 0o755)} },
			func(d string) *agentpb.CopyFileRequest { return piece(d+"/x", 1, 0, "x") }, errdefs.ErrFailedPrecondition},
		"folder over file": {func(d string) []*agentpb.CopyFileRequest { return []*agentpb.CopyFileRequest{piece(d+"/x", 1, 0, "x")} },
			func(d string) *agentpb.CopyFileRequest { return folder(d+"/x", 0o755) }, errdefs.ErrFailedPrecondition},
		"link, no volume": {nil, func(d string) *agentpb.CopyFileRequest { return link(d+"/l", "v") }, errdefs.ErrInvalidArgument},
		"link, empty":     {nil, func(d string) *agentpb.CopyFileRequest { return link(d+"/v/l", "") }, errdefs.ErrInvalidArgument},
		"link over folder": {func(d string) []*agentpb.CopyFileRequest { return []*agentpb.CopyFileRequest{folder(d+"/v/l", 0o755)} },
			func(d string) *agentpb.CopyFileRequest { return link(d+"/v/l", "x") }, errdefs.ErrFailedPrecondition},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r, dir := base(t)
			if tt.first != nil {
				mustCopy(t, r, tt.first(dir)...)
			}
			if err := r.CopyFile(t.Context(), tt.then(dir)); !errors.Is(err, tt.wantErr) {
				t.Errorf("error %v, want %v", err, tt.wantErr)
			}
		})
	}
}

// TestLinkOut writes behind links that lead out, which the host or a container has put there. The links themselves are taken as they
// are: containers see them from elsewhere.
func TestLinkOut(t *testing.T) {
	r, dir := base(t)
	outside := t.TempDir()
	climb := strings.Repeat("../", 20) + outside[1:]
	mustCopy(t, r, folder(dir+"/v", 0o755), link(dir+"/v/absolute", outside), link(dir+"/v/climb", climb))
	if err := os.Symlink(outside, dir+"/v/planted"); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"absolute", "climb", "planted"} {
		out := dir + "/v/" + name
		for _, q := range []*agentpb.CopyFileRequest{piece(out+"/x", 1, 0, "x"), folder(out+"/d", 0o755), link(out+"/l", "y"), folder(out, 0o777)} {
			if err := r.CopyFile(t.Context(), q); err == nil {
				t.Errorf("%s was written", q.Path)
			}
		}
	}
	for name, want := range map[string]string{"absolute": outside, "climb": climb} {
		if got, err := os.Readlink(dir + "/v/" + name); got != want {
			t.Errorf("link %s: %q, %v, want %q", name, got, err, want)
		}
	}
	if got, err := os.ReadDir(outside); err != nil || len(got) != 0 {
		t.Errorf("outside: %v, %v", got, err)
	}
}

func TestInFlightLimit(t *testing.T) {
	r, dir := base(t)
	for i := range maxInFlight {
		mustCopy(t, r, piece(dir+"/"+string(rune('A'+i)), 2, 0, "x"))
	}
	last := piece(dir+"/one-more", 2, 0, "x")
	if err := r.CopyFile(t.Context(), last); !errors.Is(err, errdefs.ErrResourceExhausted) {
		t.Errorf("error %v", err)
	}
	mustCopy(t, r, piece(dir+"/A", 2, 1, "y"), last)
}

// TestEntryLimit asks for more than there is room for, in every way, and leaves nothing of that.
func TestEntryLimit(t *testing.T) {
	r, dir := base(t)
	mustCopy(t, r, piece(dir+"/v/file", 1, 0, "x"))
	for i := range maxEntries - len(r.entries) {
		r.entries["v/"+strconv.Itoa(i)] = 0
	}
	for name, q := range map[string]*agentpb.CopyFileRequest{
		"file": piece(dir+"/v/new", 1, 0, "x"), "folder": folder(dir+"/v/d", 0o755), "link": link(dir+"/v/l", "file"),
		"parents": piece(dir+"/w/a/b/file", 1, 0, "x"),
	} {
		for range 3 {
			if err := r.CopyFile(t.Context(), q); !errdefs.IsResourceExhausted(err) {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	mustCopy(t, r, piece(dir+"/v/file", 2, 0, "yz"), link(dir+"/v/file", "elsewhere"))
	for name, want := range map[string]int{".": 2, "v": 1, incoming: 0} {
		if left, err := os.ReadDir(filepath.Join(dir, name)); err != nil || len(left) != want {
			t.Errorf("%s holds %v, %v", name, left, err)
		}
	}
	if r.bytes != 0 {
		t.Errorf("%d bytes are counted", r.bytes)
	}
}

// TestAlias writes behind a link inside the volume: removing the link must not make room for the file.
func TestAlias(t *testing.T) {
	r, dir := base(t)
	mustCopy(t, r, folder(dir+"/v/real", 0o755), link(dir+"/v/alias", "real"))
	if err := r.CopyFile(t.Context(), piece(dir+"/v/alias/file", 1, 0, "x")); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("error %v", err)
	}
	if left, err := os.ReadDir(dir + "/v/real"); err != nil || len(left) != 0 {
		t.Errorf("behind the link: %v, %v", left, err)
	}
}

func FuzzCopyFile(f *testing.F) {
	f.Add("v/file", uint32(unix.S_IFREG|0o644), int64(3), int64(0), []byte("abc"))
	f.Add("v/../../x", uint32(unix.S_IFLNK), int64(0), int64(0), []byte("../../.."))
	f.Add("v/a/b", uint32(unix.S_IFDIR|0o755), int64(0), int64(0), []byte{})
	f.Add("v/sealed", uint32(unix.S_IFREG|0o600), int64(9), int64(0), []byte("sealed.a\n"))
	f.Fuzz(func(t *testing.T, name string, mode uint32, size, offset int64, data []byte) {
		top := t.TempDir()
		dir := filepath.Join(top, "shared", "containers")
		r := newReceiver(dir, 1<<16)
		canary := filepath.Join(top, "canary")
		if err := os.WriteFile(canary, []byte("alive"), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, path := range []string{dir + "/" + name, name} {
			q := &agentpb.CopyFileRequest{
				Path: path, FileMode: mode, FileSize: size, Offset: offset, Data: data, Uid: int32(os.Getuid()), Gid: int32(os.Getgid()),
			}
			_ = r.CopyFile(t.Context(), q)
			// What is sealed comes to be open, at once and when it comes again.
			open := func(context.Context, string) ([]byte, error) { return []byte("secret"), nil }
			_, _ = r.Open(t.Context(), path, open)
			_ = r.CopyFile(t.Context(), q)
			if left, err := r.Sealed(path); err == nil && len(left) > 0 && r.openerOf(strings.TrimPrefix(path, dir+"/")) != nil {
				t.Fatalf("still sealed: %q", left)
			}
			behind := piece(path+"/behind", 1, 0, "x")
			_ = r.CopyFile(t.Context(), behind)
			_ = r.RemoveFiles(t.Context(), &guestpb.RemoveFilesRequest{Paths: []string{path + "/behind", path}})
		}
		if r.root != nil {
			r.root.Close()
		}
		entries, err := os.ReadDir(top)
		if err != nil || len(entries) > 2 {
			t.Fatalf("outside: %v, %v", entries, err)
		}
		if got, err := os.ReadFile(canary); err != nil || !bytes.Equal(got, []byte("alive")) {
			t.Fatalf("canary %q, %v", got, err)
		}
	})
}
