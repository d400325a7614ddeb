package hostfiles

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/emptypb"

	agentpb "github.com/coffer-project/coffer/proto/agent"
)

// fakeGuest keeps requests and assembles the files.
type fakeGuest struct {
	mu       sync.Mutex
	requests []*agentpb.CopyFileRequest
	files    map[string][]byte
	err      error
}

func (g *fakeGuest) CopyFile(_ context.Context, req *agentpb.CopyFileRequest) (*emptypb.Empty, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.err != nil {
		return nil, g.err
	}
	if g.files == nil {
		g.files = make(map[string][]byte)
	}
	// The sender reuses its buffer.
	req.Data = bytes.Clone(req.GetData())
	g.requests = append(g.requests, req)
	g.files[req.GetPath()] = append(g.files[req.GetPath()][:req.GetOffset()], req.GetData()...)
	return &emptypb.Empty{}, nil
}

func write(t *testing.T, name string, data []byte, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(name, data, mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(name, mode); err != nil {
		t.Fatal(err)
	}
}

func planAndCopy(t *testing.T, source string) *fakeGuest {
	t.Helper()
	jobs, err := Limits{}.Plan(source, "/guest/v")
	if err != nil {
		t.Fatal(err)
	}
	guest := &fakeGuest{}
	if err := Copy(t.Context(), guest, jobs); err != nil {
		t.Fatal(err)
	}
	return guest
}

func TestCopyFile(t *testing.T) {
	for name, size := range map[string]int{"empty": 0, "small": 5, "one chunk": chunk, "chunks": 2*chunk + 3} {
		t.Run(name, func(t *testing.T) {
			data := bytes.Repeat([]byte("x"), size)
			file := filepath.Join(t.TempDir(), "f")
			write(t, file, data, 0o640)
			guest := planAndCopy(t, file)
			if !bytes.Equal(guest.files["/guest/v"], data) {
				t.Errorf("guest has %d bytes, want %d", len(guest.files["/guest/v"]), size)
			}
			for i, req := range guest.requests {
				if len(req.GetData()) > chunk || req.GetFileSize() != int64(size) || req.GetOffset() != int64(i*chunk) ||
					req.GetFileMode() != unix.S_IFREG|0o640 || req.GetUid() != int32(os.Getuid()) || req.GetGid() != int32(os.Getgid()) {
					t.Errorf("request %d: %d bytes at %d of %d, mode %o, owner %d:%d", i, len(req.GetData()),
						req.GetOffset(), req.GetFileSize(), req.GetFileMode(), req.GetUid(), req.GetGid())
				}
			}
			if want := max(1, (size+chunk-1)/chunk); len(guest.requests) != want {
				t.Errorf("%d requests, want %d", len(guest.requests), want)
			}
		})
	}
}

// TestCopyTree copies a folder as the kubelet makes them for config maps, reached through a link.
func TestCopyTree(t *testing.T) {
	dir := t.TempDir()
	volume := filepath.Join(dir, "settings")
	data := filepath.Join(volume, "..2026_11_23")
	if err := os.MkdirAll(data, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(data, "key"), []byte("value"), 0o444)
	for link, target := range map[string]string{
		filepath.Join(volume, "..data"): "..2026_11_23", filepath.Join(volume, "key"): "..data/key", filepath.Join(dir, "link"): "settings",
	} {
		if err := os.Symlink(target, link); err != nil {
			t.Fatal(err)
		}
	}
	guest := planAndCopy(t, filepath.Join(dir, "link"))
	var got []string
	for _, req := range guest.requests {
		kind := map[uint32]string{unix.S_IFDIR: "dir", unix.S_IFREG: "file", unix.S_IFLNK: "link"}[req.GetFileMode()&unix.S_IFMT]
		got = append(got, strings.TrimSpace(kind+" "+req.GetPath()+" "+string(req.GetData())))
	}
	want := []string{
		"dir /guest/v", "dir /guest/v/..2026_11_23", "file /guest/v/..2026_11_23/key value", "link /guest/v/..data ..2026_11_23",
		"link /guest/v/key ..data/key",
	}
	slices.Sort(got[2:]) // what is in the folders comes together
	if !reflect.DeepEqual(got, want) {
		t.Errorf("guest was asked for %q, want %q", got, want)
	}
}

// testLimits are the real ones in bytes, and small in numbers so that a test need not make thousands of files.
var testLimits = Limits{Entries: 8, Depth: 4}

func TestPlanRefuses(t *testing.T) {
	for name, test := range map[string]struct {
		make func(t *testing.T, dir string)
		want func(error) bool
	}{
		"missing": {func(*testing.T, string) {}, errdefs.IsNotFound},
		"dangling link": {func(t *testing.T, path string) {
			if err := os.Symlink("nowhere", path); err != nil {
				t.Fatal(err)
			}
		}, errdefs.IsNotFound},
		"socket": {func(t *testing.T, path string) {
			l, err := net.Listen("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = l.Close() })
		}, errdefs.IsInvalidArgument},
		"pipe in a folder": {func(t *testing.T, path string) {
			if err := os.Mkdir(path, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := unix.Mkfifo(filepath.Join(path, "p"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, errdefs.IsInvalidArgument},
		"large file": {func(t *testing.T, path string) { sparse(t, path, DefaultBytes+1) }, errdefs.IsFailedPrecondition},
		"large folder": {func(t *testing.T, path string) {
			if err := os.Mkdir(path, 0o755); err != nil {
				t.Fatal(err)
			}
			for _, name := range []string{"a", "b", "c"} {
				sparse(t, filepath.Join(path, name), DefaultBytes/2)
			}
		}, errdefs.IsFailedPrecondition},
		"deep folder": {func(t *testing.T, path string) {
			if err := os.MkdirAll(path+strings.Repeat("/d", testLimits.Depth+2), 0o755); err != nil {
				t.Fatal(err)
			}
		}, errdefs.IsFailedPrecondition},
		"many entries": {func(t *testing.T, path string) {
			if err := os.Mkdir(path, 0o755); err != nil {
				t.Fatal(err)
			}
			for i := range testLimits.Entries {
				write(t, filepath.Join(path, strconv.Itoa(i)), nil, 0o600)
			}
		}, errdefs.IsFailedPrecondition},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "v")
			test.make(t, path)
			if jobs, err := testLimits.Plan(path, "/guest/v"); !test.want(err) {
				t.Errorf("got %d jobs, %v", len(jobs), err)
			}
		})
	}
	if _, err := (Limits{}).Plan("/dev/null", "/guest/v"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("device: got %v", err)
	}
}

func sparse(t *testing.T, name string, size int64) {
	t.Helper()
	write(t, name, nil, 0o600)
	if err := os.Truncate(name, size); err != nil {
		t.Fatal(err)
	}
}

// TestCopyAfterChange: files may change between plan and copy; what is not a moderate regular file then is refused.
func TestCopyAfterChange(t *testing.T) {
	for name, test := range map[string]struct {
		change func(t *testing.T, file string)
		want   func(error) bool
	}{
		"grown":  {func(t *testing.T, file string) { sparse(t, file, DefaultBytes+1) }, errdefs.IsFailedPrecondition},
		"gone":   {func(*testing.T, string) {}, func(err error) bool { return errors.Is(err, os.ErrNotExist) }},
		"a link": {func(_ *testing.T, file string) { _ = os.Symlink("/etc/passwd", file) }, func(err error) bool { return errors.Is(err, unix.ELOOP) }},
		"a pipe": {func(_ *testing.T, file string) { _ = unix.Mkfifo(file, 0o600) }, errdefs.IsFailedPrecondition},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "f")
			write(t, file, []byte("x"), 0o600)
			jobs, err := Limits{}.Plan(file, "/guest/f")
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
			test.change(t, file)
			if err := Copy(t.Context(), &fakeGuest{}, jobs); !test.want(err) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestCopyFails(t *testing.T) {
	job := Job{GuestPath: "/guest/f", Mode: unix.S_IFREG | 0o644, Content: []byte("x")}
	denied := &fakeGuest{err: errdefs.ErrPermissionDenied}
	if err := Copy(t.Context(), denied, []Job{job}); !errdefs.IsPermissionDenied(err) {
		t.Errorf("guest denies: got %v", err)
	}
	job.Mode = unix.S_IFCHR
	if err := Copy(t.Context(), &fakeGuest{}, []Job{job}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("device: got %v", err)
	}
	shrinks := Job{GuestPath: "/guest/f", Mode: unix.S_IFREG}
	short := &sender{guest: &fakeGuest{}}
	if err := short.chunks(t.Context(), shrinks, bytes.NewReader(nil), 3); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("file became shorter: got %v", err)
	}
}

// countingGuest holds every file until as many are under way as may be, or no more come.
type countingGuest struct {
	fakeGuest

	active map[string]int // by the name without its extension
	most   int
	full   chan struct{}
}

func (g *countingGuest) CopyFile(ctx context.Context, req *agentpb.CopyFileRequest) (*emptypb.Empty, error) {
	if req.GetFileMode()&unix.S_IFMT == unix.S_IFDIR {
		return g.fakeGuest.CopyFile(ctx, req)
	}
	stem := strings.TrimSuffix(req.GetPath(), path.Ext(req.GetPath()))
	g.mu.Lock()
	g.active[stem]++
	clash, now := g.active[stem] > 1, len(g.active)
	if now > g.most {
		if g.most = now; now == underWay {
			close(g.full)
		}
	}
	g.mu.Unlock()
	if clash {
		return nil, errors.New("two files that differ in their extension only")
	}
	<-g.full
	g.mu.Lock()
	delete(g.active, stem)
	g.mu.Unlock()
	return g.fakeGuest.CopyFile(ctx, req)
}

// TestTogether: small files are on their way together, but for those that Kata's agent would mix up.
func TestTogether(t *testing.T) {
	dir := t.TempDir()
	for i := range 40 {
		write(t, filepath.Join(dir, fmt.Sprintf("f%d.crt", i)), []byte("crt"), 0o600)
	}
	for _, name := range []string{"f39.key", "f39", "f39.tmp"} {
		write(t, filepath.Join(dir, name), []byte(name), 0o600)
	}
	write(t, filepath.Join(dir, "f38.large"), make([]byte, small+1), 0o600)
	jobs, err := Limits{}.Plan(dir, "/guest")
	if err != nil {
		t.Fatal(err)
	}
	guest := &countingGuest{active: map[string]int{}, full: make(chan struct{})}
	if err := Copy(t.Context(), guest, jobs); err != nil {
		t.Fatal(err)
	}
	if guest.most != underWay || len(guest.files) != 45 {
		t.Errorf("%d files were under way, %d are there", guest.most, len(guest.files))
	}
}

// TestTogetherFails: after an error nothing is under way, and the error is the first one.
func TestTogetherFails(t *testing.T) {
	dir := t.TempDir()
	for i := range 40 {
		write(t, filepath.Join(dir, fmt.Sprintf("f%d", i)), nil, 0o600)
	}
	jobs, err := Limits{}.Plan(dir, "/guest")
	if err != nil {
		t.Fatal(err)
	}
	guest := &fakeGuest{}
	if err := Copy(t.Context(), guest, jobs[:1]); err != nil {
		t.Fatal(err)
	}
	guest.err = errdefs.ErrResourceExhausted
	if err := Copy(t.Context(), guest, jobs[1:]); !errdefs.IsResourceExhausted(err) {
		t.Errorf("got %v", err)
	}
	guest.err = nil
	if len(guest.requests) != 1 {
		t.Errorf("%d requests came through", len(guest.requests))
	}
}
