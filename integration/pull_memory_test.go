package integration

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coffer-project/coffer/integration/harness"
	"github.com/coffer-project/coffer/integration/registrytest"
)

const (
	// smallMemory is the small pod's memory in MiB.
	smallMemory = 256
	mib         = 1 << 20
)

// pullSmallPod works in a pod of little memory whose key broker keeps silent, and then is not there: images that do not fit
// are refused before the guest runs out of memory, what fails gives its memory back, and plain images need no broker.
func pullSmallPod(t *testing.T, node *harness.Node) {
	registry := openShop(t, node)
	silent, err := node.Serve(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	brokerURL := "http://" + silent.Host
	s := &pullSite{node: node, registry: registry, base: busyboxLayer(t, node)}
	s.pod = runPullPod(t, node, "small", harness.Guest{BrokerURL: brokerURL, PlainRegistries: []string{registry.host()}},
		map[string]string{"io.katacontainers.config.hypervisor.default_memory": strconv.Itoa(smallMemory)})
	keep(t, s.pod, registry.put("base", s.image()))

	const key = "kbs:///broker/gone/kek"
	reference := registry.sealed(t, "sealed", key, newKEK(t, nil, key), s.image(hello(registrytest.Gzip, "x")), onlyLayer(1))
	pull(t, s.pod, reference)
	var refused, fault error
	waited := make(chan struct{})
	go func() {
		defer close(waited)
		_, refused, fault = try(t.Context(), node, s.pod, "waits", reference, "/bin/true")
	}()
	free := s.testTooLarge(t)
	s.testGivesBack(t, free)
	t.Run("silent broker", func(t *testing.T) {
		<-waited
		if fault != nil {
			t.Fatal(fault)
		}
		layer := registry.manifest(t, "sealed").Layers[1].Digest.String()
		wantRefused(t, refused, reference, "layer "+layer, "key broker "+brokerURL+": authentication failed after 2 attempts: no answer in time",
			"check that the broker runs")
		for _, r := range registry.Requests() {
			if r.Object == layer {
				t.Errorf("the layer was asked for by %s, which has no key", r.Client)
			}
		}
	})
	t.Run("no broker", func(t *testing.T) {
		if err := silent.Close(); err != nil {
			t.Fatal(err)
		}
		wantRefused(t, s.refusal(t, reference), reference, key, "key broker "+brokerURL, "after 5 attempts", "connection refused",
			"check that the broker runs and that the guest's network reaches it")
	})
}

// refusal returns the error with which CRI refuses a container, or nil.
func (s *pullSite) refusal(t *testing.T, reference string) error {
	t.Helper()
	pull(t, s.pod, reference)
	_, refused, fault := try(t.Context(), s.node, s.pod, "refused", reference, "/bin/true")
	if fault != nil {
		t.Fatal(fault)
	}
	return refused
}

var offered = regexp.MustCompile(`guest memory offers (\d+) MiB`)

// tooLarge tries images that do not fit and returns how many MiB the guest offered.
func (s *pullSite) testTooLarge(t *testing.T) (free int) {
	advice := "give the pod more (its annotation io.katacontainers.config.hypervisor.default_memory, or default_memory_mib of the runtime configuration)"
	t.Run("too large in the registry", func(t *testing.T) {
		s.registry.put("packed", s.image(hello(registrytest.Gzip, "x")))
		s.registry.change(t, "packed", func(m *ocispec.Manifest) { m.Layers[1].Size = 2 << 30 })
		refused := s.refusal(t, s.registry.host()+"/packed:v1")
		wantRefused(t, refused, "image needs at least 2048 MiB", advice)
		if n := s.registry.Count(registrytest.LayerBlob, "GET"); n != 1 {
			t.Errorf("%d layers were fetched, want the base alone", n)
		}
		m := offered.FindStringSubmatch(fmt.Sprint(refused))
		if m == nil {
			t.Fatal("the error does not say how much there is")
		}
		free, _ = strconv.Atoi(m[1]) // it matched digits
		if free <= 0 || free >= smallMemory {
			t.Fatalf("a guest of %d MiB offers %d", smallMemory, free)
		}
	})
	for name, layer := range map[string]registrytest.Layer{
		"one file":   zeroes(t, 1, 400*mib),
		"many files": zeroes(t, 200, 2*mib),
	} {
		t.Run("too large unpacked: "+name, func(t *testing.T) {
			reference := s.registry.put("unpacked-"+layer.DiffID.Encoded()[:8], s.image(layer))
			wantRefused(t, s.refusal(t, reference), reference, "layer 2 of 2 ("+layer.Desc.Digest.String()+")", advice, "layer does not fit")
		})
	}
	t.Run("too large unpacked: sparse", func(t *testing.T) {
		layer := registrytest.NewLayerFromTar(registrytest.Gzip, sparseTar(t, "bomb", 1<<40))
		reference := s.registry.put("unpacked-sparse", s.image(layer))
		wantRefused(t, s.refusal(t, reference), reference, "layer 2 of 2 ("+layer.Desc.Digest.String()+")", "sparse files of more than")
	})
	return free
}

// givesBack fails with large layers until together they have taken more than the guest has, and then uses as much.
func (s *pullSite) testGivesBack(t *testing.T, free int) {
	size := free / 2
	t.Run("failures give memory back", func(t *testing.T) {
		layer := registrytest.NewLayerFromTar(registrytest.Plain, sparseTar(t, "big", int64(size)*mib))
		wrong := registrytest.NewImage([]registrytest.Layer{s.base, layer}, func(c *ocispec.Image) { c.RootFS.DiffIDs[1] = digest.FromString("other") }, nil)
		reference := s.registry.put("wrong", wrong)
		for range 3 {
			wantRefused(t, s.refusal(t, reference), layer.Desc.Digest.String(), "layer unpacks to diff id")
		}
		want := fmt.Sprintln(size * mib)
		for range 2 {
			if got := s.run(t, s.registry.put("right", s.image(layer)), "/bin/sh", "-c", "wc -c < /big"); got != want {
				t.Errorf("the file has %q bytes, want %q", got, want)
			}
		}
	})
}

// zeroes is a gzip layer of files full of the digit 0: bytes of zero would become holes, which take no space.
func zeroes(t *testing.T, files int, size int64) registrytest.Layer {
	t.Helper()
	var blob bytes.Buffer
	sum := sha256.New()
	packed, err := gzip.NewWriterLevel(&blob, gzip.BestSpeed)
	if err != nil {
		t.Fatal(err)
	}
	stream := tar.NewWriter(io.MultiWriter(packed, sum))
	chunk := bytes.Repeat([]byte{'0'}, mib)
	for i := range files {
		if err := stream.WriteHeader(&tar.Header{Name: fmt.Sprintf("zero%d", i), Mode: 0o644, Size: size}); err != nil {
			t.Fatal(err)
		}
		for range size / mib {
			if _, err := stream.Write(chunk); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, c := range []io.Closer{stream, packed} {
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return registrytest.Layer{
		Desc:   registrytest.Descriptor(ocispec.MediaTypeImageLayerGzip, blob.Bytes()),
		DiffID: digest.NewDigest(digest.SHA256, sum), Blob: blob.Bytes(),
	}
}

// sparseTar is a layer with one file of zeroes that takes no space in the layer: a hole, in GNU tar's form of PAX records,
// which archive/tar reads and does not write.
func sparseTar(t *testing.T, name string, size int64) []byte {
	t.Helper()
	// One piece of no bytes at the end of the file.
	pieces := fmt.Sprintf("1\n%d\n0\n", size)
	var raw bytes.Buffer
	w := tar.NewWriter(&raw)
	header := &tar.Header{Name: name, Mode: 0o644, Size: 512, Format: tar.FormatPAX, PAXRecords: map[string]string{
		"XNU.sparse.major": "1", "XNU.sparse.minor": "0", "XNU.sparse.name": name, "XNU.sparse.realsize": strconv.FormatInt(size, 10),
	}}
	if err := w.WriteHeader(header); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(append([]byte(pieces), make([]byte, 512-len(pieces))...)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	layer := bytes.ReplaceAll(raw.Bytes(), []byte("XNU."), []byte("GNU."))
	if h, err := tar.NewReader(bytes.NewReader(layer)).Next(); err != nil || h.Size != size {
		t.Fatalf("sparse file: %+v, %v", h, err)
	}
	return layer
}
