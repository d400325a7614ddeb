package integration

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coffer-project/coffer/integration/harness"
	"github.com/coffer-project/coffer/integration/registrytest"
	"github.com/coffer-project/coffer/snapshotter"
)

// TestNodeDefault turns a node that has images and pods to node-default mode, uses it, and turns it back.
func TestNodeDefault(t *testing.T) {
	t.Parallel()
	m := newMatrix(t, harness.Options{GuestImages: []string{"*/secret-*"}})
	old := m.put(t, "old", false)
	m.mustPull(t, old)
	running := m.start(t, "running", old)

	m.node.SetNodeDefault(true)
	m.restart(t)
	m.mode = "default"
	t.Run("images from before", func(t *testing.T) { m.testImagesFromBefore(t, running, old) })
	t.Run("marks", m.testMarks)
	t.Run("shared layers", m.testSharedLayers)
	t.Run("twins", m.testTwins)
	t.Run("garbage and a lost database", m.testGarbage)

	since := m.put(t, "since", false)
	m.mustPull(t, since)
	second := m.start(t, "second", since)
	m.node.SetNodeDefault(false)
	m.restart(t)
	m.mode = "handler"
	for _, image := range []string{old, since} {
		before := m.fetched(image)
		m.runs(t, hostWorld, image)
		if n := m.fetched(image) - before; n > 0 {
			t.Errorf("back with overlayfs, %d layers of image %s were fetched again", n, image)
		}
	}
	for _, c := range []*harness.Container{running, second} {
		m.answers(t, c)
		if err := drop(t.Context(), m.node, c); err != nil {
			t.Error(err)
		}
	}
}

// mustPull pulls as a kubelet does, which names no handler.
func (m *matrix) mustPull(t *testing.T, image string) {
	t.Helper()
	pull(t, m.pods[hostWorld], image)
}

// start starts a container of the host that stays.
func (m *matrix) start(t *testing.T, name, image string) *harness.Container {
	t.Helper()
	c, err := m.pods[hostWorld].Create(t.Context(), name, image, "/bin/sleep", "86400")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return c
}

func (m *matrix) answers(t *testing.T, c *harness.Container) {
	t.Helper()
	resp, err := c.ExecSync(t.Context(), "/bin/echo", "here")
	if err != nil || string(resp.GetStdout()) != "here\n" {
		t.Errorf("a container that runs says %q, %v", resp.GetStdout(), err)
	}
}

// runs has a world run an image, which says its name.
func (m *matrix) runs(t *testing.T, world, image string) {
	t.Helper()
	output, err := m.try(t, m.pods[world], image, "/bin/cat", "/hello")
	name := strings.TrimSuffix(strings.TrimPrefix(image, m.registry.host()+"/"), ":v1")
	if err != nil || output != name {
		t.Errorf("image %s run by the %s: %q, %v", image, world, output, err)
	}
}

// refuses runs an image on the host, which must end with an error that has the parts.
func (m *matrix) refuses(t *testing.T, image string, parts ...string) {
	t.Helper()
	_, err := m.try(t, m.pods[hostWorld], image, "/bin/cat", "/hello")
	checkAnswer(t, "run", err, parts)
}

// testImagesFromBefore: what overlayfs had is unpacked again and not fetched again.
func (m *matrix) testImagesFromBefore(t *testing.T, running *harness.Container, image string) {
	m.answers(t, running)
	before := m.fetched(image)
	m.runs(t, hostWorld, image)
	m.runs(t, guestWorld, image)
	if n := m.fetched(image) - before; n > 0 {
		t.Errorf("%d layers were fetched again", n)
	}
}

// testMarks: images that are for guests although nothing in them is encrypted.
func (m *matrix) testMarks(t *testing.T) {
	mark := map[string]string{snapshotter.LabelGuestOnly: "true"}
	for name, tc := range map[string]struct {
		config   func(*ocispec.Image)
		manifest func(*ocispec.Manifest)
		why      string
	}{
		"label":      {config: func(c *ocispec.Image) { c.Config.Labels = mark }, why: "its label " + snapshotter.LabelGuestOnly},
		"annotation": {manifest: func(m *ocispec.Manifest) { m.Annotations = mark }, why: "annotation " + snapshotter.LabelGuestOnly},
		"secret-one": {why: `pattern "*/secret-*"`},
	} {
		t.Run(name, func(t *testing.T) {
			layers := []registrytest.Layer{hello(registrytest.Gzip, name), m.base}
			image := m.registry.put(name, registrytest.NewImage(layers, tc.config, tc.manifest))
			m.mustPull(t, image)
			m.refuses(t, image, "is for guests only", tc.why, "runtimeClassName")
			m.runs(t, guestWorld, image)
			if n := m.fetched(image); n > 0 {
				t.Errorf("the host fetched %d layers", n)
			}
		})
	}
}

// testSharedLayers: an image for guests comes first, and with it the lower layers of one for the host.
func (m *matrix) testSharedLayers(t *testing.T) {
	shared := registrytest.NewLayer(registrytest.Gzip, registrytest.Entry{Name: "shared", Body: "shared"})
	guest := m.registry.sealed(t, "on-shared-guest", "kbs:///shared/guest/kek", newKEK(t, m.broker, "kbs:///shared/guest/kek"),
		registrytest.NewImage([]registrytest.Layer{shared, m.base, hello(registrytest.Gzip, "on-shared-guest")}, nil, nil), onlyLayer(2))
	host := m.registry.put("on-shared-host",
		registrytest.NewImage([]registrytest.Layer{shared, m.base, hello(registrytest.Gzip, "on-shared-host")}, nil, nil))
	m.mustPull(t, guest)
	m.runs(t, guestWorld, guest)
	err := m.pods[hostWorld].Pull(t.Context(), host)
	checkAnswer(t, "pull", err, answer{"same lower layers", "pull the image again"})
	m.pullsInTheEnd(t, host)
	m.runs(t, hostWorld, host)
	m.runs(t, guestWorld, guest)
	// The image for guests has lost its place to that of the host, and now lies on layers that the host has.
	m.refuses(t, guest, "is for guests only", "runtimeClassName")
	m.mustPull(t, guest)
	m.refuses(t, guest, "is for guests only", "runtimeClassName")
	m.runs(t, hostWorld, host)
	if n := m.fetched(guest); n > 0 {
		t.Errorf("the host fetched %d layers of the image for guests", n)
	}
}

// pullsInTheEnd tries as the kubelet does, again and again.
func (m *matrix) pullsInTheEnd(t *testing.T, image string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), criTimeout)
	defer cancel()
	if err := harness.Eventually(ctx, func(ctx context.Context) error { return m.pods[hostWorld].Pull(ctx, image) }); err != nil {
		t.Fatal(err)
	}
}

// testTwins: the same image twice, encrypted and not. All their layers have the same names.
func (m *matrix) testTwins(t *testing.T) {
	img := registrytest.NewImage([]registrytest.Layer{hello(registrytest.Gzip, "twin"), m.base}, nil, nil)
	sealed := m.registry.sealed(t, "twin-sealed", "kbs:///twin/sealed/kek", newKEK(t, m.broker, "kbs:///twin/sealed/kek"), img, onlyLayer(0))
	plain := m.registry.put("twin", img)
	m.mustPull(t, sealed)
	m.mustPull(t, plain)
	m.refuses(t, plain, "one for guests with the same layers", "pull the image again")
	ctx, cancel := context.WithTimeout(t.Context(), criTimeout)
	defer cancel()
	err := harness.Eventually(ctx, func(ctx context.Context) error {
		if err := m.pods[hostWorld].Pull(ctx, plain); err != nil {
			return err
		}
		_, err := m.try(t, m.pods[hostWorld], plain, "/bin/true")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	m.runs(t, hostWorld, plain)
	output, err := m.try(t, m.pods[guestWorld], sealed, "/bin/cat", "/hello")
	if err != nil || output != "twin" {
		t.Errorf("the sealed twin says %q, %v", output, err)
	}
	if n := m.fetched(sealed); n > 0 {
		t.Errorf("the host fetched %d layers of the sealed twin", n)
	}
}

// testGarbage: unpacked images go with their names, and survive the loss of the database.
func (m *matrix) testGarbage(t *testing.T) {
	directories := func() (names []string) {
		names, err := filepath.Glob(filepath.Join(m.node.DefaultSnapshotterRoot(), "snapshots", "*"))
		if err != nil {
			t.Fatal(err)
		}
		return names
	}
	before := directories()
	image := m.put(t, "garbage", false)
	m.mustPull(t, image)
	made := slices.DeleteFunc(directories(), func(name string) bool { return slices.Contains(before, name) })
	if len(made) != 2 {
		t.Errorf("an image of 2 layers has directories %q", made)
	}
	if err := m.node.Snapshotter.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(m.node.DefaultSnapshotterRoot(), "metadata.db")); err != nil {
		t.Fatal(err)
	}
	if err := m.node.StartSnapshotter(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), criTimeout)
	defer cancel()
	err := harness.Eventually(ctx, func(ctx context.Context) error {
		_, err := m.node.CRI.SnapshotsIn(ctx, "coffer-default")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	m.runs(t, hostWorld, image)
	m.removeImage(t, image)
	for _, name := range directories() {
		if slices.Contains(made, name) {
			t.Errorf("of the removed image %s is left", name)
		}
	}
}
