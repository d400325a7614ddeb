package integration

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coffer-project/coffer/integration/harness"
	"github.com/coffer-project/coffer/integration/registrytest"
	"github.com/coffer-project/coffer/owner/broker/brokertest"
)

// The two worlds in which an image is pulled and run.
const (
	hostWorld  = "host"  // a runc pod; its pulls go to containerd's default snapshotter, as those of most kubelets do
	guestWorld = "guest" // a pod of Coffer's handler, which is named in its pulls
)

// cell is an image, the world that pulls it and the one that runs it.
type cell struct {
	pulled, run string
	encrypted   bool
}

func (c cell) String() string {
	kind := "plain"
	if c.encrypted {
		kind = "encrypted"
	}
	return fmt.Sprintf("%s-pulled-by-%s-run-by-%s", kind, c.pulled, c.run)
}

func allCells() (cells []cell) {
	for _, pulled := range []string{hostWorld, guestWorld} {
		for _, run := range []string{hostWorld, guestWorld} {
			cells = append(cells, cell{pulled, run, false}, cell{pulled, run, true})
		}
	}
	return cells
}

// cellsOfTwoWorlds leaves out what only concerns guests, which other tests do often enough.
func cellsOfTwoWorlds() []cell {
	return slices.DeleteFunc(allCells(), func(c cell) bool { return c.pulled == guestWorld && c.run == guestWorld })
}

// answer is how a cell ends: with parts of an error that says what to do, or well, where there are none.
type answer []string

// expected are the two ways to install. An image that could not be pulled cannot be run.
var expected = map[string]struct {
	pull, run func(cell) answer
}{
	"handler": {
		pull: func(c cell) answer {
			if c.pulled == hostWorld && c.encrypted {
				return answer{"failed to get stream processor", "ctd-decoder"}
			}
			return nil
		},
		run: func(c cell) answer {
			switch {
			case c.pulled == hostWorld && c.encrypted:
				return answer{"failed to resolve image", "not found"}
			case c.pulled == guestWorld && c.run == hostWorld:
				return answer{"error unpacking image", "to overlayfs", "content digest", "not found"}
			}
			return nil
		},
	},
	"default": {
		pull: func(cell) answer { return nil },
		run: func(c cell) answer {
			switch {
			case c.run == guestWorld:
				return nil
			case c.encrypted:
				return answer{"is for guests only", "is encrypted", "runtimeClassName"}
			case c.pulled == guestWorld:
				return answer{"was pulled for guests", "crictl pull"}
			}
			return nil
		},
	},
}

// TestMatrix pulls and runs images in all combinations of the two worlds. Each works, or ends with one error that says
// what to do; in no case does the host fetch a layer that it could read of an image that is encrypted.
func TestMatrix(t *testing.T) {
	t.Parallel()
	for name, options := range map[string]harness.Options{
		"handler": {}, "handler-local-pull": {LocalPull: true},
		"default": {NodeDefault: true}, "default-local-pull": {NodeDefault: true, LocalPull: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMatrix(t, options)
			before := m.snapshots(t)
			m.run(t, "fresh", allCells())
			if options.LocalPull { // which differs in how images are pulled, and in nothing else
				m.checkLocalPull(t)
				return
			}
			m.restart(t)
			m.run(t, "restarted", cellsOfTwoWorlds())
			m.removeImages(t, before)
			m.pulledTwice(t, cellsOfTwoWorlds())
		})
	}
}

// matrix is a node with a pod of each world.
type matrix struct {
	node *harness.Node
	mode string
	// localPull says that CRI pulls by itself.
	localPull bool
	registry  *shop
	broker    *brokertest.Broker
	base      registrytest.Layer
	pods      map[string]*harness.Pod
	images    map[cell]string
	serial    int
}

func newMatrix(t *testing.T, options harness.Options) *matrix {
	t.Helper()
	node := ownNode(t, options)
	m := &matrix{
		node: node, mode: "handler", localPull: options.LocalPull, registry: openShop(t, node), broker: startBroker(t, node), base: busyboxLayer(t, node),
		images: map[cell]string{},
	}
	if options.NodeDefault {
		m.mode = "default"
	}
	host, err := node.CRI.RunPod(t.Context(), "", node.CRI.PodConfig("host", nil))
	if err != nil {
		t.Fatal(err)
	}
	guest := runPullPod(t, node, "guest", harness.Guest{BrokerURL: m.broker.URL, PlainRegistries: []string{m.registry.host()}}, nil)
	m.pods = map[string]*harness.Pod{hostWorld: host, guestWorld: guest}
	keep(t, guest, m.registry.put("base", registrytest.NewImage([]registrytest.Layer{m.base}, nil, nil)))
	return m
}

// put makes an image that prints its name; no other image shares its layers, as containerd sees them.
func (m *matrix) put(t *testing.T, name string, encrypted bool) string {
	t.Helper()
	img := registrytest.NewImage([]registrytest.Layer{hello(registrytest.Gzip, name), m.base}, nil, nil)
	if !encrypted {
		return m.registry.put(name, img)
	}
	key := "kbs:///matrix/" + name + "/kek"
	return m.registry.sealed(t, name, key, newKEK(t, m.broker, key), img, onlyLayer(0))
}

// run goes through all cells. Images that a stage finds already pulled are not pulled again.
func (m *matrix) run(t *testing.T, stage string, cells []cell) {
	t.Helper()
	for _, c := range cells {
		t.Run(stage+"/"+c.String(), func(t *testing.T) {
			if _, pulled := m.images[c]; !pulled {
				m.images[c] = m.put(t, c.String(), c.encrypted)
				m.pull(t, c, m.images[c])
			}
			want := expected[m.mode].run(c)
			if m.localPull && m.mode == "default" && !c.encrypted && c.pulled == guestWorld && c.run == hostWorld {
				// Here containerd names the image at every unpack, so that one cannot be told from a pull.
				want = answer{"error unpacking image", "to coffer-default", "content digest", "not found"}
			}
			output, err := m.try(t, m.pods[c.run], m.images[c], "/bin/cat", "/hello")
			checkAnswer(t, "run", err, want)
			if err == nil && output != c.String() {
				t.Errorf("the container printed %q: it does not have the image's files", output)
			}
			m.checkByDigest(t, m.images[c])
		})
	}
}

// pull pulls an image by the cell's world and checks what the host fetched of it.
func (m *matrix) pull(t *testing.T, c cell, image string) {
	t.Helper()
	before := m.fetched(image)
	ctx, cancel := context.WithTimeout(t.Context(), criTimeout)
	defer cancel()
	checkAnswer(t, "pull", m.pods[c.pulled].Pull(ctx, image), expected[m.mode].pull(c))
	mayFetch := c.pulled == hostWorld && (!c.encrypted || m.mode == "handler")
	if layers := m.fetched(image) - before; layers > 0 && !mayFetch {
		t.Errorf("the host fetched %d layers", layers)
	}
}

// fetched counts the layers of an image that the host has asked for.
func (m *matrix) fetched(image string) (layers int) {
	for _, r := range m.registry.Requests() {
		if r.Client == harness.NodeIP && r.Kind == registrytest.LayerBlob && m.registry.host()+"/"+r.Repo+":v1" == image {
			layers++
		}
	}
	return layers
}

// checkByDigest makes sure that guests ask for what the host has resolved, and not for what a tag means by then.
func (m *matrix) checkByDigest(t *testing.T, image string) {
	t.Helper()
	for _, r := range m.registry.Requests() {
		if r.Client == m.pods[guestWorld].IP && r.Kind == registrytest.Manifest && m.registry.host()+"/"+r.Repo+":v1" == image &&
			!strings.HasPrefix(r.Object, "sha256:") {
			t.Errorf("the guest asked for the manifest %s, not for a digest", r.Object)
		}
	}
}

// try runs a command in a container of its own. The error is that of any step.
func (m *matrix) try(t *testing.T, pod *harness.Pod, reference string, command ...string) (string, error) {
	t.Helper()
	m.serial++
	output, refused, fault := try(t.Context(), m.node, pod, fmt.Sprintf("c%d", m.serial), reference, command...)
	if refused != nil {
		return "", refused
	}
	return output, fault
}

func checkAnswer(t *testing.T, step string, err error, want answer) {
	t.Helper()
	switch {
	case len(want) == 0 && err != nil:
		t.Fatalf("%s: %v", step, err)
	case len(want) > 0 && err == nil:
		t.Fatalf("%s: it worked; want an error with %q", step, want)
	}
	for _, part := range want {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%s: %q is not in the error: %v", step, part, err)
		}
	}
}

// checkLocalPull makes sure that the node has done what it was told to.
func (m *matrix) checkLocalPull(t *testing.T) {
	t.Helper()
	log, err := os.ReadFile(m.node.Containerd.LogPath)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(log, []byte("Falling back to local image pull mode")) {
		t.Error("containerd pulls by its transfer service")
	}
}

// restart kills containerd and the snapshotter at once, under running pods, starts them again and waits until CRI answers.
func (m *matrix) restart(t *testing.T) {
	t.Helper()
	for _, p := range []*harness.Process{m.node.Containerd, m.node.Snapshotter} {
		if err := p.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), criTimeout)
	defer cancel()
	if err := m.node.StartSnapshotter(ctx); err != nil {
		t.Fatal(err)
	}
	if err := m.node.StartContainerd(ctx); err != nil {
		t.Fatal(err)
	}
	err := harness.Eventually(ctx, func(ctx context.Context) error {
		_, err := m.node.CRI.Runtime.Version(ctx, &runtime.VersionRequest{})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// snapshots counts what each snapshotter of ours has.
func (m *matrix) snapshots(t *testing.T) map[string]int {
	t.Helper()
	counts := map[string]int{}
	for _, name := range []string{"coffer", "coffer-default"} {
		if name == "coffer-default" && m.mode != "default" {
			continue
		}
		count, err := m.node.CRI.SnapshotsIn(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		counts[name] = count
	}
	return counts
}

// removeImages removes the images of all cells, after which nothing of them may be left in our snapshotters.
func (m *matrix) removeImages(t *testing.T, before map[string]int) {
	t.Helper()
	for c, image := range m.images {
		m.removeImage(t, image)
		_, err := m.try(t, m.pods[c.run], image, "/bin/true")
		checkAnswer(t, "run", err, answer{"failed to resolve image", "not found"})
		delete(m.images, c)
	}
	m.awaitSnapshots(t, before)
}

// awaitSnapshots waits until our snapshotters have no more than they had: containerd collects its garbage when it likes.
func (m *matrix) awaitSnapshots(t *testing.T, before map[string]int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), criTimeout)
	defer cancel()
	err := harness.Eventually(ctx, func(context.Context) error {
		if now := m.snapshots(t); fmt.Sprint(now) != fmt.Sprint(before) {
			return fmt.Errorf("snapshots %v, before the images came %v", now, before)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func (m *matrix) removeImage(t *testing.T, image string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), criTimeout)
	defer cancel()
	if _, err := m.node.CRI.Images.RemoveImage(ctx, &runtime.RemoveImageRequest{Image: &runtime.ImageSpec{Image: image}}); err != nil {
		t.Fatal(err)
	}
}

// pulledTwice has both worlds pull an image before it is run, as an admin does whom an error told to pull again: what the
// first pull left is not in the way of the second.
func (m *matrix) pulledTwice(t *testing.T, cells []cell) {
	t.Helper()
	for _, c := range cells {
		t.Run("pulled-twice/"+c.String(), func(t *testing.T) {
			second := c
			second.pulled = map[string]string{hostWorld: guestWorld, guestWorld: hostWorld}[c.pulled]
			image := m.put(t, c.String()+"-twice", c.encrypted)
			m.pull(t, c, image)
			m.pull(t, second, image)
			var want answer
			switch {
			case c.run == guestWorld || !c.encrypted:
			case m.mode == "handler":
				want = answer{"error unpacking image", "to overlayfs"}
			default:
				want = expected[m.mode].run(c)
			}
			_, err := m.try(t, m.pods[c.run], image, "/bin/cat", "/hello")
			checkAnswer(t, "run", err, want)
		})
	}
}
