package worker_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/guestpull/mediatype"
	"github.com/coffer-project/coffer/guestpull/unpack"
	"github.com/coffer-project/coffer/guestpull/unpack/worker"
	"github.com/coffer-project/coffer/guestpull/unpack/worker/workertest"
	rt "github.com/coffer-project/coffer/integration/registrytest"
	"github.com/coffer-project/coffer/integration/require"
)

func newClient(t *testing.T, opts ...unpack.Option) *worker.Client {
	t.Helper()
	require.Root(t)
	return worker.New(unpack.New(unpack.DefaultLimits(), opts...), workertest.Program(t), worker.StartProcess)
}

var gzipped = unpack.Layer{Compression: mediatype.Gzip, Digest: digest.SHA256}

// TestUnpack puts everything into one layer that needs a right of its own, and more bytes than the ring holds.
func TestUnpack(t *testing.T) {
	c := newClient(t)
	capability := string([]byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	body := make([]byte, 5<<20)
	for i := range body { // packs badly
		body[i] = byte(i*i>>7 ^ i*31>>3)
	}
	layer := rt.NewLayer(rt.Plain, []rt.Entry{
		{Name: "d/", Mode: 0o2750, UID: 3, GID: 4},
		{Name: "d/.wh..wh..opq"},
		{Name: "d/tool", Body: "x", Mode: 0o4755, UID: 5, GID: 6, Xattrs: map[string]string{"security.capability": capability, "user.note": "hi"}},
		{Name: "d/link", Type: tar.TypeSymlink, Link: "/d/tool", UID: 7},
		{Name: "d/.wh.gone"},
		{Name: "implied/big", Body: string(body)},
		{Name: "implied/hard", Type: tar.TypeLink, Link: "elsewhere/\xff\xfe"},
		{Name: "pipe", Type: tar.TypeFifo, Mode: 0o600},
	}...)
	dir := t.TempDir()
	res, err := c.Unpack(t.Context(), dir, bytes.NewReader(layer.Blob), unpack.Layer{Digest: digest.SHA256})
	if err != nil {
		t.Fatal(err)
	}
	if res.DiffID != layer.DiffID || res.Size != int64(len(body))+1 {
		t.Errorf("got diff id %s and %d bytes", res.DiffID, res.Size)
	}
	if links := res.Deferred.Links; !slices.Equal(res.Deferred.Implied, []string{"implied"}) || len(links) != 1 || links[0].Target != "elsewhere/\xff\xfe" {
		t.Errorf("left is %+v", res.Deferred)
	}
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(dir, "d/tool"), &st); err != nil || st.Uid != 5 || st.Gid != 6 || st.Mode&0o7777 != 0o4755 {
		t.Errorf("tool is %+v, %v", st, err)
	}
	if err := unix.Lstat(filepath.Join(dir, "d/gone"), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != 0 {
		t.Errorf("whiteout is %+v, %v", st, err)
	}
	value := make([]byte, 64)
	for name, want := range map[string]string{"security.capability": capability, "user.note": "hi"} {
		if n, err := unix.Lgetxattr(filepath.Join(dir, "d/tool"), name, value); err != nil || string(value[:n]) != want {
			t.Errorf("%s is %q, %v", name, value[:max(n, 0)], err)
		}
	}
	if n, err := unix.Lgetxattr(filepath.Join(dir, "d"), "trusted.overlay.opaque", value); err != nil || string(value[:n]) != "y" {
		t.Errorf("d is not opaque: %v", err)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "implied/big")); err != nil || !bytes.Equal(got, body) {
		t.Errorf("big has %d bytes, %v", len(got), err)
	}
}

var errOfReader = errors.New("of the reader")

// endless is a stream that goes on until it is told to end, by which time something has happened.
type endless struct {
	r     io.Reader
	after func() error
}

func (e *endless) Read(p []byte) (int, error) {
	n, err := e.r.Read(p)
	if err == io.EOF {
		return n, e.after()
	}
	return n, err
}

func TestFaults(t *testing.T) {
	layer := rt.NewLayer(rt.Gzip, rt.Files(map[string]string{"a": strings.Repeat("a", 1<<20)})...)
	cut := func(after func() error) io.Reader {
		return &endless{bytes.NewReader(layer.Blob[:len(layer.Blob)/2]), after}
	}
	var pid int
	kill := func() error {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			return err
		}
		return io.EOF
	}
	full := unpack.WithSpace(func(string) (int64, error) { return 10, nil })
	cases := map[string]struct {
		r       io.Reader
		opts    []unpack.Option
		wantErr error
	}{
		"reader fails": {r: cut(func() error { return errOfReader }), wantErr: errOfReader},
		"cut stream":   {r: cut(func() error { return io.EOF }), wantErr: errdefs.ErrInvalidArgument},
		"no gzip":      {r: strings.NewReader("no gzip at all"), wantErr: errdefs.ErrInvalidArgument},
		"killed":       {r: cut(kill), wantErr: worker.ErrEnded},
		"no space": {opts: []unpack.Option{full}, wantErr: errdefs.ErrResourceExhausted,
			r: bytes.NewReader(rt.NewLayer(rt.Gzip, rt.Files(map[string]string{"a": strings.Repeat("a", 9<<20)})...).Blob)},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			require.Root(t)
			start := func(cmd *exec.Cmd) (_ int, exit <-chan int, err error) {
				pid, exit, err = worker.StartProcess(cmd)
				return pid, exit, err
			}
			c := worker.New(unpack.New(unpack.DefaultLimits(), tc.opts...), workertest.Program(t), start)
			_, err := c.Unpack(t.Context(), t.TempDir(), tc.r, gzipped)
			if !errors.Is(err, tc.wantErr) {
				t.Errorf("got %v, want %v", err, tc.wantErr)
			}
			if err := unix.Kill(pid, 0); !errors.Is(err, unix.ESRCH) {
				t.Errorf("worker %d still lives: %v", pid, err)
			}
		})
	}
}

func TestCancel(t *testing.T) {
	c := newClient(t)
	ctx, cancel := context.WithCancel(t.Context())
	layer := rt.NewLayer(rt.Gzip, rt.Files(map[string]string{"a": "a"})...)
	r := &endless{bytes.NewReader(layer.Blob[:20]), func() error { cancel(); return ctx.Err() }}
	if _, err := c.Unpack(ctx, t.TempDir(), r, gzipped); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// TestOtherPrograms: what is no worker, or none that can be locked in, is an error.
func TestOtherPrograms(t *testing.T) {
	require.Root(t)
	for _, program := range []string{"/bin/true", "/bin/cat", "/does/not/exist"} {
		c := worker.New(unpack.New(unpack.DefaultLimits()), program, worker.StartProcess)
		layer := rt.NewLayer(rt.Gzip, rt.Files(map[string]string{"a": "a"})...)
		if _, err := c.Unpack(t.Context(), t.TempDir(), bytes.NewReader(layer.Blob), gzipped); err == nil {
			t.Errorf("%s unpacked a layer", program)
		}
	}
}
