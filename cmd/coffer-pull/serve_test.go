package main

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	rt "github.com/coffer-project/coffer/integration/registrytest"
	"github.com/coffer-project/coffer/integration/require"
	"github.com/coffer-project/coffer/proto/cdh"
)

// service is coffer-pull serve as a process.
type service struct {
	cmd          *exec.Cmd
	root, socket string
}

// startService starts it on a root of its own and waits until it listens.
func startService(t *testing.T, r *rt.Registry) *service {
	t.Helper()
	s := &service{root: require.Tmpfs(t, 0, ""), socket: filepath.Join(t.TempDir(), "cdh.sock")}
	s.start(t, r)
	return s
}

func (s *service) start(t *testing.T, r *rt.Registry) {
	t.Helper()
	// People write flags on either side of the word.
	s.cmd, _, _ = process(t, "--plain-http", r.Addr(), "--socket", s.socket, "serve", "--root", s.root)
	s.cmd.Stderr = os.Stderr
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the service listens", func() bool {
		conn, err := net.Dial("unix", s.socket)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
}

func (s *service) client(t *testing.T) *ttrpc.Client {
	t.Helper()
	conn, err := net.Dial("unix", s.socket)
	if err != nil {
		t.Fatal(err)
	}
	client := ttrpc.NewClient(conn)
	t.Cleanup(func() { client.Close() })
	return client
}

// stop ends the service as a service manager does.
func (s *service) stop(t *testing.T) {
	t.Helper()
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Wait(); err != nil {
		t.Errorf("the service ended with %v", err)
	}
	if _, err := os.Lstat(s.socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its socket is left: %v", err)
	}
}

func unmount(t *testing.T, bundle string) {
	t.Helper()
	if err := unix.Unmount(filepath.Join(bundle, "rootfs"), unix.MNT_DETACH); err != nil {
		t.Error(err)
	}
}

// TestServe plays the agent: it asks for an image over the Confidential Data Hub's protocol and looks into the bundle.
func TestServe(t *testing.T) {
	require.Root(t)
	r := rt.Start(t)
	ref := demo(r)
	bad := r.Put("bad", "1", rt.NewImage([]rt.Layer{rt.NewLayer(rt.Plain, rt.Entry{Name: "f"})}, func(c *ocispec.Image) { c.Architecture = "s390x" }, nil))
	s := startService(t, r)
	client := cdh.NewImagePullServiceClient(s.client(t))

	bundle := filepath.Join(s.root, "bundle")
	resp, err := client.PullImage(t.Context(), &cdh.ImagePullRequest{ImageUrl: ref, BundlePath: bundle})
	if err != nil {
		t.Fatal(err)
	}
	defer unmount(t, bundle)
	if !strings.HasPrefix(resp.GetManifestDigest(), "sha256:") {
		t.Errorf("manifest digest is %q", resp.GetManifestDigest())
	}
	if body, err := os.ReadFile(filepath.Join(bundle, "rootfs/hello")); err != nil || string(body) != "two" {
		t.Errorf("hello is %q, %v", body, err)
	}
	if err := os.WriteFile(filepath.Join(bundle, "rootfs/new"), nil, 0o600); err != nil {
		t.Errorf("root file system cannot be written: %v", err)
	}
	other := filepath.Join(s.root, "other")
	for name, tc := range map[string]struct {
		req  *cdh.ImagePullRequest
		want error
	}{
		"bundle in use":   {&cdh.ImagePullRequest{ImageUrl: ref, BundlePath: bundle}, errdefs.ErrAlreadyExists},
		"relative bundle": {&cdh.ImagePullRequest{ImageUrl: ref, BundlePath: "x"}, errdefs.ErrInvalidArgument},
		"endless bundle":  {&cdh.ImagePullRequest{ImageUrl: ref, BundlePath: "/" + strings.Repeat("x", 1<<16)}, errdefs.ErrInvalidArgument},
		"other platform":  {&cdh.ImagePullRequest{ImageUrl: bad, BundlePath: other}, errdefs.ErrInvalidArgument},
		"no such image":   {&cdh.ImagePullRequest{ImageUrl: r.Addr() + "/none:1", BundlePath: other}, errdefs.ErrNotFound},
	} {
		_, err := client.PullImage(t.Context(), tc.req)
		if !errors.Is(errgrpc.ToNative(err), tc.want) {
			t.Errorf("%s: %v, want %v", name, err, tc.want)
		}
		if _, err := os.Lstat(other); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: a bundle is left: %v", name, err)
		}
	}
	// An image that was pulled and cannot be mounted is given back.
	if _, err := client.PullImage(t.Context(), &cdh.ImagePullRequest{ImageUrl: ref, BundlePath: filepath.Join(bundle, "rootfs/hello/bundle")}); err == nil {
		t.Error("a bundle below a file was made")
	}
	if left, err := os.ReadDir(filepath.Join(s.root, "scratch")); err != nil || len(left) != 1 {
		t.Errorf("scratch folders, one of them in use: %v, %v", left, err)
	}
	s.stop(t)
}

// TestServeStops: a service that ends gives up what is under way, and keeps what containers run from.
func TestServeStops(t *testing.T) {
	require.Root(t)
	r := rt.Start(t)
	s := startService(t, r)
	client := cdh.NewImagePullServiceClient(s.client(t))
	bundle, other := filepath.Join(s.root, "bundle"), filepath.Join(s.root, "other")
	if _, err := client.PullImage(t.Context(), &cdh.ImagePullRequest{ImageUrl: demo(r), BundlePath: bundle}); err != nil {
		t.Fatal(err)
	}
	before := r.Count(rt.LayerBlob, "GET")
	ref, _ := stalled(r)
	answer := make(chan error, 1)
	go func() {
		_, err := client.PullImage(t.Context(), &cdh.ImagePullRequest{ImageUrl: ref, BundlePath: other})
		answer <- err
	}()
	eventually(t, "the pull hangs", func() bool { return r.Count(rt.LayerBlob, "GET") >= before+2 })
	s.stop(t)
	if err := <-answer; err == nil {
		t.Error("a pull that hangs succeeded")
	}
	if left, err := os.ReadDir(filepath.Join(s.root, "staging")); err != nil || len(left) > 0 {
		t.Errorf("left in work: %v, %v", left, err)
	}
	if _, err := os.Lstat(other); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a bundle is left: %v", err)
	}
	if body, err := os.ReadFile(filepath.Join(bundle, "rootfs/hello")); err != nil || string(body) != "two" {
		t.Errorf("in the image that was pulled, hello is %q, %v", body, err)
	}

	cmd, _, stderr := process(t, "serve", "--socket", s.socket, "--root", s.root)
	if err := cmd.Run(); err == nil || !strings.Contains(stderr.String(), bundle+"/rootfs was pulled by an earlier service") {
		t.Errorf("a service over images in use: %v, %s", err, stderr)
	}
	unmount(t, bundle)
	if err := os.Remove(filepath.Join(bundle, "rootfs")); err != nil {
		t.Fatal(err)
	}
	s.start(t, r)
	cmd, _, stderr = process(t, "serve", "--socket", s.socket, "--root", t.TempDir())
	if err := cmd.Run(); err == nil || !strings.Contains(stderr.String(), "another service answers") {
		t.Errorf("a service beside another: %v, %s", err, stderr)
	}
	again := cdh.NewImagePullServiceClient(s.client(t))
	if _, err := again.PullImage(t.Context(), &cdh.ImagePullRequest{ImageUrl: demo(r), BundlePath: bundle}); err != nil {
		t.Errorf("the next service: %v", err)
	}
	unmount(t, bundle)
	s.stop(t)
}
