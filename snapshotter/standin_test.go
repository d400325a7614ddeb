package snapshotter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coffer-project/coffer/proto/hostroot"
	"github.com/coffer-project/coffer/proto/volume"
	"github.com/coffer-project/coffer/snapshotter/images"
)

// fakeImages is a containerd that knows some images, or does not answer.
type fakeImages struct {
	images  []*images.Image
	records []images.Record
	err     error
	asked   int
	// containers are by id.
	containers map[string]images.Container
}

func (f *fakeImages) Manifest(_ context.Context, d digest.Digest) (*images.Image, error) {
	for _, i := range f.images {
		if i.Manifest == d {
			return i, f.err
		}
	}
	return nil, errors.Join(f.err, errdefs.ErrNotFound)
}

func (f *fakeImages) Containing(_ context.Context, chain digest.Digest) (found []*images.Image, err error) {
	f.asked++
	for _, i := range f.images {
		if slices.Contains(i.Chains, chain) {
			found = append(found, i)
		}
	}
	return found, f.err
}

func (f *fakeImages) Targeting(_ context.Context, d digest.Digest) (found []images.Record, err error) {
	f.asked++
	for _, r := range f.records {
		if r.Target == d {
			found = append(found, r)
		}
	}
	return found, f.err
}

func (f *fakeImages) Names(_ context.Context, manifest digest.Digest) (names []string, err error) {
	for _, r := range f.records {
		if r.Target == manifest {
			names = append(names, r.Name)
		}
	}
	return names, f.err
}

func (f *fakeImages) Named(_ context.Context, name string) (images.Record, error) {
	for _, r := range f.records {
		if r.Name == name {
			return r, f.err
		}
	}
	return images.Record{}, errors.Join(f.err, errdefs.ErrNotFound)
}

func (f *fakeImages) Container(_ context.Context, id string) (images.Container, error) {
	if c, ok := f.containers[id]; ok {
		return c, f.err
	}
	return images.Container{}, errors.Join(f.err, errdefs.ErrNotFound)
}

func (f *fakeImages) Close() error { return nil }

func imageOf(user string, chains ...digest.Digest) *images.Image {
	return &images.Image{Chains: chains, Config: ocispec.ImageConfig{User: user}}
}

// passwdOf reads the names that containerd finds in what it is to mount.
func passwdOf(t *testing.T, mounts []mount.Mount) []byte {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(mounts[0].Source, hostroot.PasswdFile))
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func hasUser(passwd []byte, name string) bool {
	return bytes.Contains(passwd, []byte("\n"+name+":x:"))
}

// TestNamesOfUsers: a container's folder has the names of all images that have just its layers.
func TestNamesOfUsers(t *testing.T) {
	containerd := &fakeImages{images: []*images.Image{
		imageOf("app:crew", chainA), imageOf("other", chainA), imageOf("above", chainA, chainB),
	}}
	s := open(t, t.TempDir(), WithImages(containerd))
	name := pull(t, s, layerOf{chain: chainA.String(), image: app})
	if containerd.asked != 0 {
		t.Error("a pull asked containerd")
	}
	passwd := passwdOf(t, prepare(t, s, "c", name))
	for user, want := range map[string]bool{"app": true, "other": true, "above": false, "nobody": true} {
		if hasUser(passwd, user) != want {
			t.Errorf("user %s: %v", user, !want)
		}
	}
	asked := containerd.asked
	containerd.err = fmt.Errorf("dead: %w", errdefs.ErrUnavailable)
	mounts, err := s.Mounts(testContext(t), "c")
	if err != nil || containerd.asked != asked || !bytes.Equal(passwdOf(t, mounts), passwd) {
		t.Errorf("mounts of a container that is there: %v, %v", mounts, err)
	}
	later := passwdOf(t, prepare(t, s, "without containerd", name))
	if hasUser(later, "app") || !hasUser(later, "nobody") {
		t.Error("without containerd not just the well-known users are there")
	}
}

// TestFoldersAreShared: equal folders are one, and it goes with the last snapshot that names it.
func TestFoldersAreShared(t *testing.T) {
	root := t.TempDir()
	s := open(t, root, WithImages(&fakeImages{images: []*images.Image{imageOf("app", chainA)}}))
	name := pull(t, s, layerOf{chain: chainA.String(), image: app})
	first := prepare(t, s, "c1", name)[0].Source
	if second := prepare(t, s, "c2", name)[0].Source; second != first {
		t.Errorf("two folders %s and %s", first, second)
	}
	// A power failure may leave it in part, and a kill one that is not finished.
	damaged := filepath.Join(first, hostroot.PasswdFile)
	if err := errors.Join(os.WriteFile(damaged, nil, 0o600), os.Mkdir(filepath.Join(s.hostRoots.dir, unfinishedRoot+"1"), 0o700)); err != nil {
		t.Fatal(err)
	}
	if passwd := passwdOf(t, prepare(t, s, "c3", name)); !hasUser(passwd, "app") {
		t.Errorf("the folder was not repaired: %q", passwd)
	}
	for _, key := range []string{"c1", "c2", "c3"} {
		if err := s.Cleanup(testContext(t)); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(first); err != nil {
			t.Errorf("the folder is gone before %s: %v", key, err)
		}
		if err := s.Remove(testContext(t), key); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Cleanup(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(s.hostRoots.dir); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// slowImages is a containerd that answers only when it is told to.
type slowImages struct {
	*fakeImages
	asked, answer chan struct{}
}

func (s *slowImages) Containing(ctx context.Context, chain digest.Digest) ([]*images.Image, error) {
	close(s.asked)
	<-s.answer
	return s.fakeImages.Containing(ctx, chain)
}

// TestSlowContainerd: a question to containerd that is not answered holds up nobody but who asked.
func TestSlowContainerd(t *testing.T) {
	slow := &slowImages{fakeImages: &fakeImages{}, asked: make(chan struct{}), answer: make(chan struct{})}
	s := open(t, t.TempDir(), WithImages(slow))
	name := pull(t, s, layerOf{chain: chainA.String(), image: app})
	prepared := make(chan error)
	go func() {
		_, err := s.Prepare(testContext(t), "c1", name)
		prepared <- err
	}()
	<-slow.asked
	cleaned := make(chan error, 1)
	go func() { cleaned <- s.Cleanup(testContext(t)) }()
	select {
	case err := <-cleaned:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("a clean-up waits for containerd")
	}
	close(slow.answer)
	if err := <-prepared; err != nil {
		t.Error(err)
	}
}

// TestRestartKeepsFolders: what a container has been given stays, also when containerd is away at the start.
func TestRestartKeepsFolders(t *testing.T) {
	root := t.TempDir()
	s := open(t, root, WithImages(&fakeImages{images: []*images.Image{imageOf("app", chainA)}}))
	name := pull(t, s, layerOf{chain: chainA.String(), image: app})
	want := prepare(t, s, "c", name)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, root, WithImages(&fakeImages{err: errdefs.ErrUnavailable}))
	got, err := s.Mounts(testContext(t), "c")
	if err != nil || got[0].Source != want[0].Source || !hasUser(passwdOf(t, got), "app") {
		t.Fatalf("after a restart %v, %v; before %v", got, err, want)
	}
	if err := os.RemoveAll(got[0].Source); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Mounts(testContext(t), "c"); err != nil || got[0].Source != s.empty {
		t.Fatalf("without the folder: %v, %v", got, err)
	}
}

// TestImageVolume: the folder of an image that is mounted as a volume says which image it is.
func TestImageVolume(t *testing.T) {
	target := digest.FromString("index of the volume")
	key := "k8s.io/7//run/containerd/io.containerd.grpc.v1.cri/image-volumes/pod/" + target.Encoded()
	records := []images.Record{
		{Name: "sha256:" + target.Encoded(), Target: target}, {Name: "registry.example/b:1", Target: target}, {Name: "registry.example/data:1", Target: target},
	}
	tests := map[string]struct {
		pulledAs, key string
		containerd    *fakeImages
		want          string
		wantDigest    string
	}{
		"by its first name":        {key: key, containerd: &fakeImages{records: records}, want: "registry.example/b:1", wantDigest: target.String()},
		"by the name it came with": {pulledAs: "registry.example/data:1", key: key, containerd: &fakeImages{records: records}, want: "registry.example/data:1", wantDigest: target.String()},
		"containerd is away":       {pulledAs: app, key: key, containerd: &fakeImages{err: errdefs.ErrUnavailable}, want: app, wantDigest: manifestOf(app)},
		"name unknown":             {key: key, containerd: &fakeImages{}, want: volume.DummySource},
		"another container":        {pulledAs: app, key: "k8s.io/7/abc", containerd: &fakeImages{records: records}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			s := open(t, t.TempDir(), WithImages(tc.containerd))
			layer := pull(t, s, layerOf{chain: chainA.String(), image: tc.pulledAs})
			raw, err := os.ReadFile(filepath.Join(prepare(t, s, tc.key, layer)[0].Source, hostroot.VolumeFile))
			if tc.want == "" {
				if !errors.Is(err, os.ErrNotExist) {
					t.Fatalf("it is described as a volume: %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			v, err := volume.Parse(string(raw))
			if err != nil || v.Source != tc.want || v.ImagePull.Metadata[volume.MetadataManifestDigest] != tc.wantDigest {
				t.Errorf("got %+v, %v", v, err)
			}
		})
	}
}

func TestNumericUsers(t *testing.T) {
	s := open(t, t.TempDir(), WithNumericUsers())
	name := pull(t, s, layerOf{chain: chainA.String(), image: app})
	if got := prepare(t, s, "c", name)[0].Source; got != s.empty {
		t.Errorf("mounts %s", got)
	}
}

// TestVolumeParts: a label can make folders in the folder of a volume, and nothing else.
func TestVolumeParts(t *testing.T) {
	long := strings.Repeat("a", maxVolumePart+1)
	label := "models/a, /models/b/,../escape,a/../../b,,/,etc/passwd,etc/group/x,.coffer/volume,etc/more,a//b,con\ntrol," + long
	image := imageOf("app", chainA)
	image.Config.Labels = map[string]string{LabelVolumePaths: label}
	s := open(t, t.TempDir(), WithImages(&fakeImages{images: []*images.Image{image}}))
	layer := pull(t, s, layerOf{chain: chainA.String(), image: app})
	key := "k8s.io/7//run/image-volumes/pod/" + chainA.Encoded()
	source := prepare(t, s, key, layer)[0].Source
	var got []string
	err := filepath.WalkDir(source, func(path string, _ fs.DirEntry, err error) error {
		if err == nil && path != source {
			got = append(got, strings.TrimPrefix(path, source))
		}
		return err
	})
	want := []string{"/.coffer", "/.coffer/volume", "/etc", "/etc/group", "/etc/more", "/etc/passwd", "/models", "/models/a", "/models/b"}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("the folder has %q, %v; want %q", got, err, want)
	}
	if again := prepare(t, s, key+"0", layer)[0].Source; again == source {
		t.Error("a container has the folders of a volume")
	}
	if parts := volumeParts(strings.Repeat("x/y,", 2*maxVolumeParts)); len(parts) != maxVolumeParts {
		t.Errorf("%d folders", len(parts))
	}
}
