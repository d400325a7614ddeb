package integration

import (
	"archive/tar"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coffer-project/coffer/integration/harness"
	"github.com/coffer-project/coffer/integration/registrytest"
	"github.com/coffer-project/coffer/owner/broker/brokertest"
	"github.com/coffer-project/coffer/owner/seal"
	"github.com/coffer-project/coffer/proto/keyprovider"
	"github.com/coffer-project/coffer/shim/sandbox"
)

// pullSite is a pod with a registry and a broker of its own, and an image that holds the base of all others in the guest.
type pullSite struct {
	node     *harness.Node
	broker   *brokertest.Broker
	registry *shop
	base     registrytest.Layer
	pod      *harness.Pod
	serial   int // of containers that run made
}

func newPullSite(t *testing.T, node *harness.Node, name string) *pullSite {
	t.Helper()
	s := &pullSite{node: node, broker: startBroker(t, node), registry: openShop(t, node), base: busyboxLayer(t, node)}
	guest := harness.Guest{BrokerURL: s.broker.URL, PlainRegistries: []string{s.registry.host()}}
	s.pod = runPullPod(t, node, name, guest, nil)
	keep(t, s.pod, s.registry.put("base", s.image()))
	return s
}

// image is the base with layers above.
func (s *pullSite) image(layers ...registrytest.Layer) *registrytest.Image {
	return registrytest.NewImage(append([]registrytest.Layer{s.base}, layers...), nil, nil)
}

func (s *pullSite) run(t *testing.T, reference string, command ...string) string {
	t.Helper()
	s.serial++
	return pullAndRun(t, s.node, s.pod, fmt.Sprintf("run-%d", s.serial), reference, command...)
}

// hello is a layer with one file that says which image it belongs to.
func hello(packing, text string) registrytest.Layer {
	return registrytest.NewLayer(packing, registrytest.Entry{Name: "hello", Body: text})
}

// imageShapes make an image whose file /hello has the shape's name, and return its reference.
var imageShapes = map[string]func(t *testing.T, s *pullSite, name string) string{
	"plain-tar":  plainShape(registrytest.Plain),
	"plain-gzip": plainShape(registrytest.Gzip),
	"plain-zstd": plainShape(registrytest.Zstd),
	"tar":        sealedShape(registrytest.Plain, onlyLayer(1)),
	"gzip":       sealedShape(registrytest.Gzip, onlyLayer(1)),
	"zstd":       sealedShape(registrytest.Zstd, onlyLayer(1)),
	"all-layers": sealedShape(registrytest.Gzip, nil),
	"ctr":        sealedShape(registrytest.Gzip, func(o *seal.Options) { o.Layers, o.Wrap = []int{1}, keyprovider.WrapCTR }),
	"digest": func(_ *testing.T, s *pullSite, name string) string {
		img := s.image(hello(registrytest.Gzip, name))
		s.registry.Put(name, "", img)
		return s.registry.host() + "/" + name + "@" + img.Desc.Digest.String()
	},
	"docker-types": func(t *testing.T, s *pullSite, name string) string {
		s.registry.put(name, s.image(hello(registrytest.Gzip, name)))
		s.registry.change(t, name, func(m *ocispec.Manifest) {
			m.MediaType = "application/vnd.docker.distribution.manifest.v2+json"
			m.Config.MediaType = "application/vnd.docker.container.image.v1+json"
			for i := range m.Layers {
				m.Layers[i].MediaType = "application/vnd.docker.image.rootfs.diff.tar.gzip"
			}
		})
		return s.registry.host() + "/" + name + ":v1"
	},
	"index": func(t *testing.T, s *pullSite, name string) string {
		return s.sealed(t, name, s.index(name), onlyLayer(1))
	},
	"index-by-digest": func(t *testing.T, s *pullSite, name string) string {
		s.sealed(t, name, s.index(name), onlyLayer(1))
		desc, err := (&shelf{s.registry.Registry, name}).Resolve(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return s.registry.host() + "/" + name + "@" + desc.Digest.String()
	},
}

func plainShape(packing string) func(*testing.T, *pullSite, string) string {
	return func(_ *testing.T, s *pullSite, name string) string {
		return s.registry.put(name, s.image(hello(packing, name)))
	}
}

func sealedShape(packing string, options func(*seal.Options)) func(*testing.T, *pullSite, string) string {
	return func(t *testing.T, s *pullSite, name string) string {
		return s.sealed(t, name, s.image(hello(packing, name)), options)
	}
}

func (s *pullSite) sealed(t *testing.T, name string, img *registrytest.Image, options func(*seal.Options)) string {
	t.Helper()
	key := "kbs:///images/" + name + "/kek"
	return s.registry.sealed(t, name, key, newKEK(t, s.broker, key), img, options)
}

// index has an image for this platform and, before it, one for another.
func (s *pullSite) index(name string) *registrytest.Image {
	other := registrytest.NewImage([]registrytest.Layer{s.base, hello(registrytest.Gzip, "the wrong one")},
		func(c *ocispec.Image) { c.Architecture = "arm64" }, nil)
	return registrytest.NewIndex(map[string]*registrytest.Image{"linux/arm64": other, "linux/amd64": s.image(hello(registrytest.Gzip, name))})
}

// pullImages runs images of all shapes in one pod.
func pullImages(t *testing.T, node *harness.Node) {
	s := newPullSite(t, node, "images")
	for name, shape := range imageShapes {
		t.Run(name, func(t *testing.T) {
			if got := s.run(t, shape(t, s, name), "/bin/cat", "/hello"); got != name {
				t.Errorf("the container printed %q, want %q", got, name)
			}
		})
	}
	t.Run("same image twice", s.sameImageTwice)
	t.Run("same layers, other keys", s.sameLayersOtherKeys)
	t.Run("fidelity", s.fidelity)
	t.Run("file capability", s.fileCapability)
	t.Run("image config", s.imageConfig)
	t.Run("tampered config", s.tamperedConfig)
	t.Run("absent from the registry", func(t *testing.T) {
		// What goes wrong before the guest is asked is containerd's to tell.
		if err := s.pod.Pull(t.Context(), s.registry.host()+"/nothing:v1"); err == nil || !strings.Contains(err.Error(), "not found") {
			t.Errorf("pull of an image that does not exist: %v", err)
		}
	})
}

// sameImageTwice holds an image by one container and starts another: nothing is fetched a second time.
func (s *pullSite) sameImageTwice(t *testing.T) {
	reference := s.sealed(t, "twice", s.image(hello(registrytest.Gzip, "twice")), onlyLayer(1))
	pull(t, s.pod, reference)
	first, err := s.pod.Create(t.Context(), "first", reference, "/bin/sleep", "86400")
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	layers := s.registry.Count(registrytest.LayerBlob, "GET")
	if got := s.run(t, reference, "/bin/cat", "/hello"); got != "twice" {
		t.Errorf("the second container printed %q", got)
	}
	if n := s.registry.Count(registrytest.LayerBlob, "GET") - layers; n != 0 {
		t.Errorf("%d layers were fetched that the guest had", n)
	}
	if err := first.Stop(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
}

// sameLayersOtherKeys runs an image whose layers the guest has already, in plain and under another key: diff ids do not
// give the right to read them.
func (s *pullSite) sameLayersOtherKeys(t *testing.T) {
	img := s.image(hello(registrytest.Gzip, "secret"))
	plain := s.registry.put("twin-plain", img)
	keys := map[string]string{"twin-a": "kbs:///images/twin/a", "twin-b": "kbs:///images/twin/b"}
	a := s.registry.sealed(t, "twin-a", keys["twin-a"], newKEK(t, s.broker, keys["twin-a"]), img, onlyLayer(1))
	kek := newKEK(t, nil, keys["twin-b"])
	b := s.registry.sealed(t, "twin-b", keys["twin-b"], kek, img, onlyLayer(1))
	for _, reference := range []string{plain, a} {
		pull(t, s.pod, reference)
		repository, _, _ := strings.Cut(strings.TrimPrefix(reference, s.registry.host()+"/"), ":")
		container, err := s.pod.Create(t.Context(), repository, reference, "/bin/sleep", "86400")
		if err != nil {
			t.Fatal(err)
		}
		if err := container.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	pull(t, s.pod, b)
	_, refused, fault := try(t.Context(), s.node, s.pod, "twin-refused", b, "/bin/cat", "/hello")
	if fault != nil {
		t.Fatal(fault)
	}
	wantRefused(t, refused, b, "has no resource "+keys["twin-b"])

	s.broker.Put(t, keys["twin-b"], kek)
	container, err := s.pod.Create(t.Context(), "twin-allowed", b, "/bin/cat", "/hello")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := container.Run(t.Context()); err != nil || got != "secret" {
		t.Errorf("with its key the container printed %q, %v", got, err)
	}
	report := s.report(t).Containers[container.ID]
	want := s.registry.manifest(t, "twin-b").Layers[1].Digest.String()
	if fmt.Sprint(report.KeyIDs) != "["+keys["twin-b"]+"]" || len(report.Layers) != 2 || report.Layers[1].Digest != want {
		t.Errorf("the report has keys %v and layers %+v; want key %s and layer %s", report.KeyIDs, report.Layers, keys["twin-b"], want)
	}
}

func (s *pullSite) report(t *testing.T) (report sandbox.Report) {
	t.Helper()
	info, err := s.pod.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(info[sandbox.InfoKey]), &report); err != nil {
		t.Fatal(err)
	}
	return report
}

// fidelity looks from inside at an image of three layers that use what tar and overlay offer.
func (s *pullSite) fidelity(t *testing.T) {
	lower := registrytest.NewLayer(registrytest.Gzip,
		registrytest.Entry{Name: "f/"}, registrytest.Entry{Name: "f/gone", Body: "x"}, registrytest.Entry{Name: "f/opaque/"},
		registrytest.Entry{Name: "f/opaque/old", Body: "x"}, registrytest.Entry{Name: "f/dir/", Mode: 0o1730, UID: 7, GID: 8},
		registrytest.Entry{Name: "f/dir/below", Body: "lower"}, registrytest.Entry{Name: "f/swap", Body: "a file"},
		registrytest.Entry{Name: "f/removed/"}, registrytest.Entry{Name: "f/removed/deep", Body: "x"},
	)
	middle := registrytest.NewLayer(registrytest.Gzip,
		registrytest.Entry{Name: "f/.wh.gone"}, registrytest.Entry{Name: "f/opaque/.wh..wh..opq"}, registrytest.Entry{Name: "f/opaque/new", Body: "n"},
		registrytest.Entry{Name: "f/.wh.removed"}, registrytest.Entry{Name: "f/swap/"}, registrytest.Entry{Name: "f/swap/inside", Body: "y"},
		// No entry for f/dir itself: its owner and mode are those of the layer below.
		registrytest.Entry{Name: "f/dir/above", Body: "middle"},
	)
	upper := registrytest.NewLayer(registrytest.Zstd,
		registrytest.Entry{Name: "f/owned", Body: "12345", Mode: 0o640, UID: 1234, GID: 5678},
		registrytest.Entry{Name: "f/setuid", Body: "u", Mode: 0o4755}, registrytest.Entry{Name: "f/setgid", Body: "g", Mode: 0o2711},
		registrytest.Entry{Name: "f/hard", Type: tar.TypeLink, Link: "f/owned", Mode: 0o640, UID: 1234, GID: 5678},
		registrytest.Entry{Name: "f/soft", Type: tar.TypeSymlink, Link: "../f/owned"},
		registrytest.Entry{Name: "f/pipe", Type: tar.TypeFifo, Mode: 0o600},
		registrytest.Entry{Name: "f/disk", Type: tar.TypeBlock, Major: 8, Minor: 0},
		registrytest.Entry{Name: "f/" + strings.Repeat("long", 40), Body: "l"},
		registrytest.Entry{Name: "../../escape", Body: "must stay inside"},
	)
	reference := s.sealed(t, "fidelity", s.image(lower, middle, upper), onlyLayer(1, 3))
	script := `cd /f && busybox stat -c '%n|%F|%a|%u:%g' dir swap pipe && busybox stat -c '%n|%F|%a|%u:%g|%h|%s' owned setuid setgid hard &&
busybox readlink soft && cat dir/below dir/above opaque/new swap/inside && echo &&
ls -d gone opaque/old removed disk 2>&1 | busybox wc -l && ls opaque && ls | busybox grep -c longlong && busybox date -u -r owned +%s && cat /escape`
	want := `dir|directory|1730|7:8
swap|directory|755|0:0
pipe|fifo|600|0:0
owned|regular file|640|1234:5678|2|5
setuid|regular file|4755|0:0|1|1
setgid|regular file|2711|0:0|1|1
hard|regular file|640|1234:5678|2|5
../f/owned
lowermiddleny
4
new
1
1700000000
must stay inside`
	if got := s.run(t, reference, "/bin/sh", "-c", "PATH=/bin; "+script); got != want {
		t.Errorf("the image looks from inside like\n%s\nwant\n%s", got, want)
	}
}

// fileCapability shows by its effect that an extended attribute has arrived: the program gets a capability that its user
// does not have.
func (s *pullSite) fileCapability(t *testing.T) {
	// struct vfs_cap_data, revision 2, effective: CAP_NET_BIND_SERVICE.
	capability := string([]byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	program, err := os.ReadFile(s.node.Tools.Busybox)
	if err != nil {
		t.Fatal(err)
	}
	layer := registrytest.NewLayer(registrytest.Gzip, registrytest.Entry{
		Name: "able/busybox", Mode: 0o755, Body: string(program), Xattrs: map[string]string{"security.capability": capability},
	})
	reference := s.registry.put("capability", s.image(layer))
	pull(t, s.pod, reference)
	container, err := s.pod.CreateFrom(t.Context(), &runtime.ContainerConfig{
		Metadata: &runtime.ContainerMetadata{Name: "capability"},
		Image:    &runtime.ImageSpec{Image: reference, UserSpecifiedImage: reference, RuntimeHandler: s.pod.Handler},
		Command:  []string{"/able/busybox", "grep", "CapEff", "/proc/self/status"}, LogPath: "capability.log",
		Linux: &runtime.LinuxContainerConfig{SecurityContext: &runtime.LinuxContainerSecurityContext{
			RunAsUser:        &runtime.Int64Value{Value: 65534},
			NamespaceOptions: &runtime.NamespaceOption{Pid: runtime.NamespaceMode_CONTAINER},
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := container.Run(t.Context()); err != nil || got != "CapEff:\t0000000000000400\n" {
		t.Errorf("the program's capabilities are %q, %v; want that of its file", got, err)
	}
}
