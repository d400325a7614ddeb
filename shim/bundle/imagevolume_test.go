package bundle

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coffer-project/coffer/proto/hostroot"
	"github.com/coffer-project/coffer/proto/volume"
)

// volumeHost has the folders of image volumes, by their paths.
type volumeHost struct {
	fakeHost
	roots map[string]string
}

func (h volumeHost) hostRoot(dir, file string) ([]byte, error) {
	option, ok := h.roots[dir]
	if !ok || file != hostroot.VolumeFile {
		return nil, fs.ErrNotExist
	}
	return []byte(option), nil
}

func volumeOption(t *testing.T, source string) string {
	t.Helper()
	v := volume.Volume{VolumeType: volume.TypeImageGuestPull, Source: source, ImagePull: &volume.ImagePull{Metadata: map[string]string{
		volume.MetadataPlatform: "linux/amd64", "evil": "x",
	}}}
	option, err := v.Option()
	if err != nil {
		t.Fatal(err)
	}
	return option
}

func TestImageVolumes(t *testing.T) {
	const state = "/run/containerd/io.containerd.grpc.v1.cri"
	at := func(n int) string { return fmt.Sprintf("%s/image-volumes/pod/%064x", state, n) }
	declared := state + "/containers/c/volumes/" + strings.Repeat("a", 64)
	host := volumeHost{roots: map[string]string{
		at(1): volumeOption(t, "registry.test/one"), at(2): volumeOption(t, "registry.test/two:2"),
		at(3): volumeOption(t, volume.DummySource), at(4): "garbage",
	}}
	for i := range maxImageVolumes {
		host.roots[at(100+i)] = volumeOption(t, fmt.Sprintf("registry.test/many:%d", i))
	}
	tests := map[string]struct {
		sources []string
		// want is where each mount comes from in the guest, images what the guest pulls.
		want, images []string
		wantErr      error
	}{
		"one image":             {sources: []string{at(1)}, want: []string{"/run/kata-containers/c/images/0"}, images: []string{"registry.test/one:latest"}},
		"a part of it":          {sources: []string{at(1) + "/models/a"}, want: []string{"/run/kata-containers/c/images/0/models/a"}, images: []string{"registry.test/one:latest"}},
		"two parts of one":      {sources: []string{at(1) + "/a", at(1) + "/b"}, want: []string{"/run/kata-containers/c/images/0/a", "/run/kata-containers/c/images/0/b"}, images: []string{"registry.test/one:latest"}},
		"two images":            {sources: []string{at(1), at(2)}, want: []string{"/run/kata-containers/c/images/0", "/run/kata-containers/c/images/1"}, images: []string{"registry.test/one:latest", "registry.test/two:2"}},
		"a part outside":        {sources: []string{at(1) + "/../../../rootfs"}, want: []string{"/run/kata-containers/c/images/0/rootfs"}, images: []string{"registry.test/one:latest"}},
		"unpacked on the host":  {sources: []string{at(9)}, want: []string{guestPath("c", "/m0")}},
		"declared by the image": {sources: []string{declared}, want: []string{"/run/kata-containers/c/rootfs/m0"}},
		"another's declared":    {sources: []string{strings.Replace(declared, "/c/", "/d/", 1)}, want: []string{guestPath("c", "/m0")}},
		"image unknown":         {sources: []string{at(3)}, wantErr: errdefs.ErrFailedPrecondition},
		"no document":           {sources: []string{at(4)}, wantErr: errdefs.ErrInvalidArgument},
		"too many": {sources: func() (out []string) {
			for i := range maxImageVolumes {
				out = append(out, at(100+i))
			}
			return append(out, at(1))
		}(), wantErr: errdefs.ErrInvalidArgument},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			var mounts []specs.Mount
			for i, source := range tc.sources {
				mounts = append(mounts, specs.Mount{Destination: fmt.Sprint("/m", i), Source: source, Type: "bind", Options: []string{"rbind", "ro"}})
			}
			p := &planner{containerID: "c", copy: hostFiles, host: host, emptyDirs: new(EmptyDirs), dropped: new(dropped)}
			got, err := p.run(mounts)
			if !errors.Is(err, tc.wantErr) {
				t.Fatalf("error %v, want %v", err, tc.wantErr)
			}
			if err != nil {
				return
			}
			for i, want := range tc.want {
				if got.mounts[i].GetSource() != want {
					t.Errorf("mount %d comes from %s, want %s", i, got.mounts[i].GetSource(), want)
				}
			}
			if len(got.storages) != len(tc.images) {
				t.Fatalf("storages %v", got.storages)
			}
			for i, want := range tc.images {
				s := got.storages[i]
				if s.GetSource() != want || s.GetMountPoint() != fmt.Sprint("/run/kata-containers/c/images/", i) || strings.Contains(s.GetDriverOptions()[0], "evil") {
					t.Errorf("storage %v", s)
				}
			}
		})
	}
}
