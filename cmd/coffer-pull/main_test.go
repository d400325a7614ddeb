package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/guestpull/image"
	rt "github.com/coffer-project/coffer/integration/registrytest"
	"github.com/coffer-project/coffer/integration/require"
	"github.com/coffer-project/coffer/proto/cdh"
)

func demo(r *rt.Registry) string {
	return r.Put("demo", "1", rt.NewImage([]rt.Layer{
		rt.NewLayer(rt.Gzip, rt.Files(map[string]string{"hello": "one", "base": "b"})...),
		rt.NewLayer(rt.Zstd, rt.Files(map[string]string{"hello": "two"})...),
	}, nil, nil))
}

func TestPull(t *testing.T) {
	require.Root(t)
	r := rt.Start(t)
	ref := demo(r)
	var out bytes.Buffer
	a := app()
	a.Writer = &out
	common := []string{"coffer-pull", "pull", "--root", t.TempDir(), "--plain-http", r.Addr(), "--platform", "linux/amd64"}
	if err := a.RunContext(t.Context(), append(common, ref)); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"decompress", "UNPACKED", "/layers/"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in the output:\n%s", want, out.String())
		}
	}
	out.Reset()
	if err := a.RunContext(t.Context(), append(common, "--json", ref)); err != nil {
		t.Fatal(err)
	}
	var img image.Image
	if err := json.Unmarshal(out.Bytes(), &img); err != nil || len(img.Layers) != 2 {
		t.Errorf("got %+v, %v", img, err)
	}
}

func TestPullFaults(t *testing.T) {
	cases := map[string]struct {
		args []string
		text string
	}{
		"no reference":     {[]string{"pull"}, "want one image reference"},
		"two key sources":  {[]string{"pull", "--key-file", "x", "--kbs-url", "http://127.0.0.1:1", "a.b/c:1"}, "exclude each other"},
		"missing initdata": {[]string{"pull", "--initdata", "/does/not/exist", "a.b/c:1"}, "read initdata"},
		"missing CA":       {[]string{"pull", "--ca", "/does/not/exist", "a.b/c:1"}, "read CA file"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			a := app()
			a.Writer = &bytes.Buffer{}
			err := a.RunContext(t.Context(), append([]string{"coffer-pull"}, tc.args...))
			if err == nil || !strings.Contains(err.Error(), tc.text) {
				t.Fatalf("got %v, want %q", err, tc.text)
			}
		})
	}
}

// TestServe plays the agent: it asks for an image over the Confidential Data Hub's protocol and looks into the bundle.
func TestServe(t *testing.T) {
	require.Root(t)
	r := rt.Start(t)
	ref := demo(r)
	bad := r.Put("bad", "1", rt.NewImage([]rt.Layer{rt.NewLayer(rt.Plain, rt.Entry{Name: "f"})}, func(c *ocispec.Image) { c.Architecture = "s390x" }, nil))
	root := require.Tmpfs(t, 0, "")
	socket := filepath.Join(t.TempDir(), "cdh.sock")
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() {
		served <- app().RunContext(ctx, []string{"coffer-pull", "serve", "--socket", socket, "--root", root, "--plain-http", r.Addr()})
	}()
	client := cdh.NewImagePullServiceClient(dial(t, socket))

	bundle := filepath.Join(root, "bundle")
	resp, err := client.PullImage(t.Context(), &cdh.ImagePullRequest{ImageUrl: ref, BundlePath: bundle})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(filepath.Join(bundle, "rootfs"), unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	if !strings.HasPrefix(resp.GetManifestDigest(), "sha256:") {
		t.Errorf("manifest digest is %q", resp.GetManifestDigest())
	}
	if body, err := os.ReadFile(filepath.Join(bundle, "rootfs/hello")); err != nil || string(body) != "two" {
		t.Errorf("hello is %q, %v", body, err)
	}
	if err := os.WriteFile(filepath.Join(bundle, "rootfs/new"), nil, 0o600); err != nil {
		t.Errorf("root file system cannot be written: %v", err)
	}
	for name, tc := range map[string]struct {
		req  *cdh.ImagePullRequest
		want error
	}{
		"bundle in use":   {&cdh.ImagePullRequest{ImageUrl: ref, BundlePath: bundle}, errdefs.ErrAlreadyExists},
		"relative bundle": {&cdh.ImagePullRequest{ImageUrl: ref, BundlePath: "x"}, errdefs.ErrInvalidArgument},
		"other platform":  {&cdh.ImagePullRequest{ImageUrl: bad, BundlePath: filepath.Join(root, "other")}, errdefs.ErrInvalidArgument},
	} {
		_, err := client.PullImage(t.Context(), tc.req)
		if !errors.Is(errgrpc.ToNative(err), tc.want) {
			t.Errorf("%s: %v, want %v", name, err, tc.want)
		}
	}
	cancel()
	if err := <-served; err != nil {
		t.Errorf("serve: %v", err)
	}
}

// dial waits until the service listens.
func dial(t *testing.T, socket string) *ttrpc.Client {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		conn, err := net.Dial("unix", socket)
		if err == nil {
			client := ttrpc.NewClient(conn)
			t.Cleanup(func() { client.Close() })
			return client
		}
		if time.Now().After(deadline) {
			t.Fatalf("service does not listen: %v", err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
