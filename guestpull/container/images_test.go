package container

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coffer-project/coffer/integration/require"
	"github.com/coffer-project/coffer/proto/oci"
)

// TestVolumesOfImages creates a container with images as volumes and with a folder that its own image declares, and removes it.
func TestVolumesOfImages(t *testing.T) {
	require.Root(t)
	f := newFakes(t)
	must(t, errors.Join(os.Mkdir(filepath.Join(f.images.layer, "data"), 0o755), os.WriteFile(filepath.Join(f.images.layer, "data/seed"), []byte("seed"), 0o600)))
	req := f.request("c1")
	req.Storages = append(req.Storages, volume(f.imagesDir("c1")+"/0"), volume(f.imagesDir("c1")+"/1"))
	req.OCI.Mounts = []*oci.Mount{
		{Destination: "/all", Source: f.imagesDir("c1") + "/0", Type: "bind", Options: []string{"rbind", "ro"}},
		{Destination: "/part", Source: f.imagesDir("c1") + "/1/data", Type: "bind", Options: []string{"rbind", "ro"}},
		{Destination: "/data", Source: f.rootfs("c1") + "/data", Type: "bind", Options: []string{"rbind", "rw"}},
		{Destination: "/absent/deep", Source: f.rootfs("c1") + "/absent/deep", Type: "bind", Options: []string{"rbind", "rw"}},
	}
	must(t, f.Create(t.Context(), req))
	raw, err := os.ReadFile(filepath.Join(f.Base, "c1/config.json"))
	must(t, err)
	var built specs.Spec
	must(t, json.Unmarshal(raw, &built))
	source := map[string]string{}
	for _, m := range built.Mounts {
		source[m.Destination] = m.Source
	}
	for _, path := range []string{source["/all"] + "/data/seed", source["/part"] + "/seed", source["/data"] + "/seed"} {
		if got, err := os.ReadFile(path); err != nil || string(got) != "seed" {
			t.Errorf("%s: %q, %v", path, got, err)
		}
	}
	for dest, writable := range map[string]bool{"/all": false, "/part": false, "/data": true, "/absent/deep": true} {
		if err := os.WriteFile(source[dest]+"/new", nil, 0o600); (err == nil) != writable {
			t.Errorf("writing to %s: %v", dest, err)
		}
	}
	if _, err := os.Stat(filepath.Join(f.rootfs("c1"), "absent/deep/new")); err != nil {
		t.Errorf("a declared volume is not in the root: %v", err)
	}
	if left, err := os.ReadDir(f.images.layer); err != nil || len(left) != 1 {
		t.Errorf("the layer was changed: %v, %v", left, err)
	}
	must(t, f.Remove(t.Context(), "c1", 0))
	f.wantNothing(t, "c1")
}

func TestPartOfAnImageThatIsMissing(t *testing.T) {
	require.Root(t)
	f := newFakes(t)
	req := f.request("c1")
	req.Storages = append(req.Storages, volume(f.imagesDir("c1")+"/0"))
	req.OCI.Mounts = []*oci.Mount{{Destination: "/v", Source: f.imagesDir("c1") + "/0/none", Type: "bind", Options: []string{"ro"}}}
	if err := f.Create(t.Context(), req); !errdefs.IsNotFound(err) {
		t.Errorf("error: %v", err)
	}
	f.wantNothing(t, "c1")
}
