package snapshotter

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"sync"
	"testing"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff/apply"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/core/unpack"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	snlabels "github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.etcd.io/bbolt"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/coffer-project/coffer/snapshotter/server"
)

// node is the part of containerd that a snapshotter meets: its real metadata database, content store and unpacker, with
// our snapshotter behind them over gRPC as a proxy plugin.
type node struct {
	t       testing.TB
	ctx     context.Context
	dir     string
	opts    []Opt
	content content.Store
	// sn is the snapshotter as containerd's own services see it.
	sn      snapshots.Snapshotter
	collect func(context.Context) error
	stop    func()
}

func newNode(tb testing.TB, opts ...Opt) *node {
	tb.Helper()
	n := &node{t: tb, dir: tb.TempDir(), opts: opts, ctx: namespaces.WithNamespace(testContext(tb), "k8s.io")}
	n.start()
	tb.Cleanup(func() { n.stop() })

	conn, err := grpc.NewClient("unix://"+n.path("sock"), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = conn.Close() })
	cs, err := local.NewStore(n.path("content"))
	if err != nil {
		tb.Fatal(err)
	}
	db, err := bbolt.Open(n.path("meta.db"), 0o600, nil)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = db.Close() })
	backend := proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "coffer")
	mdb := metadata.NewDB(db, cs, map[string]snapshots.Snapshotter{"coffer": backend})
	if err := mdb.Init(n.ctx); err != nil {
		tb.Fatal(err)
	}
	n.content, n.sn = mdb.ContentStore(), mdb.Snapshotter("coffer")
	n.collect = func(ctx context.Context) error {
		_, err := mdb.GarbageCollect(ctx)
		return err
	}
	return n
}

func (n *node) path(name string) string { return filepath.Join(n.dir, name) }

// start runs the snapshotter and its server, as the program does.
func (n *node) start() {
	n.t.Helper()
	s, err := New(n.ctx, n.path("root"), n.opts...)
	if err != nil {
		n.t.Fatal(err)
	}
	l, err := server.Listen(n.ctx, n.path("sock"))
	if err != nil {
		n.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(n.ctx))
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx, l, s) }()
	n.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-served; err != nil {
			n.t.Error(err)
		}
		if err := s.Close(); err != nil {
			n.t.Error(err)
		}
	})
}

// loseDatabase stops the snapshotter, removes its database and starts it again. containerd notices nothing.
func (n *node) loseDatabase() {
	n.t.Helper()
	n.stop()
	if err := os.Remove(filepath.Join(n.path("root"), "metadata.db")); err != nil {
		n.t.Fatal(err)
	}
	n.start()
}

// image is an image whose manifest and configuration are in the content store, as after containerd fetched them.
type image struct {
	manifest ocispec.Descriptor
	blobs    map[digest.Digest][]byte
	chains   []digest.Digest
}

func (i image) top() string { return i.chains[len(i.chains)-1].String() }

// image makes an image with one file a layer. A non-empty mediaType is given to all its layers; if it is encrypted, so are they.
func (n *node) image(mediaType string, files ...string) image {
	n.t.Helper()
	img := image{blobs: map[digest.Digest][]byte{}}
	manifest := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	var config ocispec.Image
	config.OS, config.Architecture, config.RootFS.Type = "linux", "amd64", "layers"
	if mediaType == "" {
		mediaType = ocispec.MediaTypeImageLayer
	}
	for _, name := range files {
		var layer bytes.Buffer
		w := tar.NewWriter(&layer)
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(name))}); err != nil {
			n.t.Fatal(err)
		}
		if _, err := w.Write([]byte(name)); err != nil {
			n.t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			n.t.Fatal(err)
		}
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromBytes(layer.Bytes()))
		blob := layer.Bytes()
		if mediaType == encrypted {
			for i := range blob {
				blob[i] ^= 0xa5
			}
		}
		d := digest.FromBytes(blob)
		img.blobs[d] = blob
		manifest.Layers = append(manifest.Layers, ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(blob))})
	}
	img.chains = identity.ChainIDs(append([]digest.Digest(nil), config.RootFS.DiffIDs...))
	manifest.Config = n.store(ocispec.MediaTypeImageConfig, config)
	img.manifest = n.store(ocispec.MediaTypeImageManifest, manifest)
	return img
}

func (n *node) store(mediaType string, document any) ocispec.Descriptor {
	n.t.Helper()
	raw, err := json.Marshal(document)
	if err != nil {
		n.t.Fatal(err)
	}
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	n.ingest(desc, raw)
	return desc
}

func (n *node) ingest(desc ocispec.Descriptor, raw []byte) {
	n.t.Helper()
	// The root label is what an image record does in containerd: it keeps the content from being collected.
	err := content.WriteBlob(n.ctx, n.content, desc.Digest.String(), bytes.NewReader(raw), desc,
		content.WithLabels(map[string]string{"containerd.io/gc.root": "now"}))
	if err != nil {
		n.t.Fatal(err)
	}
}

// pull unpacks an image by containerd's unpacker and returns which layers it fetched. reference is what containerd says
// in the cri.* labels; with none it says nothing, as on a second unpack in transfer mode.
func (n *node) pull(img image, reference string) (fetched []digest.Digest, err error) {
	n.t.Helper()
	unpacker, err := unpack.NewUnpacker(n.ctx, n.content, unpack.WithUnpackPlatform(unpack.Platform{
		SnapshotterKey: "coffer", Snapshotter: n.sn, Applier: apply.NewFileSystemApplier(n.content),
	}))
	if err != nil {
		return nil, err
	}
	var lock sync.Mutex
	children := images.ChildrenHandler(n.content)
	var handler images.Handler = images.HandlerFunc(func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		if images.IsLayerType(desc.MediaType) {
			lock.Lock()
			defer lock.Unlock()
			fetched = append(fetched, desc.Digest)
			n.ingest(desc, img.blobs[desc.Digest])
			return nil, nil
		}
		return children(ctx, desc)
	})
	if reference != "" {
		handler = snlabels.AppendInfoHandlerWrapper(reference)(handler)
	}
	if err := images.Dispatch(n.ctx, unpacker.Unpack(handler), nil, img.manifest); err != nil {
		return fetched, err
	}
	_, err = unpacker.Wait()
	return fetched, err
}

func namespace(ctx context.Context, name string) context.Context {
	return namespaces.WithNamespace(ctx, name)
}

// forget removes all content, and with it the label by which an image keeps its snapshots.
func (n *node) forget() {
	n.t.Helper()
	var all []digest.Digest
	err := n.content.Walk(n.ctx, func(i content.Info) error {
		all = append(all, i.Digest)
		return nil
	})
	if err != nil {
		n.t.Fatal(err)
	}
	for _, d := range all {
		if err := n.content.Delete(n.ctx, d); err != nil {
			n.t.Fatal(err)
		}
	}
}
