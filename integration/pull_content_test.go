package integration

import (
	"encoding/base64"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coffer-project/coffer/integration/harness"
	"github.com/coffer-project/coffer/integration/registrytest"
	"github.com/coffer-project/coffer/owner/broker/brokertest"
	"github.com/coffer-project/coffer/owner/seal"
	"github.com/coffer-project/coffer/proto/keyprovider"
)

const pubOptsAnnotation = "org.opencontainers.image.enc.pubopts"

// contentFault is an image whose manifest is consistent and whose layer is not what it should be.
type contentFault struct {
	// layer, config and options shape the image before it is sealed, spoil changes it afterwards; the second layer is the
	// victim. The zero values mean a gzip layer, encrypted.
	layer   func(...registrytest.Entry) registrytest.Layer
	config  func(*ocispec.Image)
	options func(*seal.Options)
	spoil   func(t *testing.T, s *shop, m *ocispec.Manifest)
	// want are parts of the error; {layer} and {key} stand for what they are in the case.
	want []string
}

var contentFaults = map[string]contentFault{
	"flipped-byte-in-tar": {
		layer: packed(registrytest.Plain), spoil: reblob(flipMiddle),
		want: []string{"layer 2 of 2 ({layer})", "HMAC does not match", "layer was changed after it was encrypted"},
	},
	"flipped-byte-in-gzip": {
		spoil: reblob(flipMiddle), want: []string{"layer 2 of 2 ({layer})", "HMAC does not match"},
	},
	"flipped-byte-in-zstd": {
		layer: packed(registrytest.Zstd), spoil: reblob(flipMiddle), want: []string{"layer 2 of 2 ({layer})", "HMAC does not match"},
	},
	"cut-ciphertext": {
		spoil: reblob(func(raw []byte) []byte { return raw[:len(raw)-1] }), want: []string{"{layer}", "HMAC does not match"},
	},
	"longer-ciphertext": {
		spoil: reblob(func(raw []byte) []byte { return append(raw, 0) }), want: []string{"{layer}", "HMAC does not match"},
	},
	"other-hmac": {
		spoil: pubOpts(func(o map[string]any) { o["hmac"] = make([]byte, 32) }), want: []string{"{layer}", "HMAC does not match"},
	},
	"other-diff-id": {
		config: func(c *ocispec.Image) { c.RootFS.DiffIDs[1] = digest.FromString("other") },
		want:   []string{"layer 2 of 2 ({layer})", "layer unpacks to diff id", "the image configuration says " + digest.FromString("other").String()},
	},
	"unknown-media-type": {
		spoil: func(_ *testing.T, _ *shop, m *ocispec.Manifest) {
			m.Layers[1].MediaType = "application/vnd.oci.image.layer.v1.tar+lz4+encrypted"
		},
		want: []string{"({layer})", "tar+lz4+encrypted\" is not supported", "tar+gzip"},
	},
	"wrong-packing": {
		spoil: func(_ *testing.T, _ *shop, m *ocispec.Manifest) {
			m.Layers[1].MediaType = ocispec.MediaTypeImageLayerZstd + "+encrypted"
		},
		want: []string{"layer 2 of 2 ({layer})", "zstd"},
	},
	"no-packet": {
		spoil: annotate(keyprovider.LayerAnnotation, ""),
		want:  []string{"unlock layer {layer}", "layer is marked as encrypted and has no wrapped key"},
	},
	"other-provider": {
		spoil: func(_ *testing.T, _ *shop, m *ocispec.Manifest) {
			a := m.Layers[1].Annotations
			a["org.opencontainers.image.enc.keys.pgp"] = a[keyprovider.LayerAnnotation]
			delete(a, keyprovider.LayerAnnotation)
		},
		want: []string{"unlock layer {layer}", `encrypted for ["pgp"]`, "attestation-agent"},
	},
	"packet-not-base64":  {spoil: annotate(keyprovider.LayerAnnotation, "%%%"), want: []string{"{layer}", "wrapped key 0", "encryption annotation is malformed"}},
	"packet-not-json":    {spoil: packet(nil), want: []string{"{layer}", "document is not JSON", "encryption annotation is malformed"}},
	"packet-no-key-id":   {spoil: packet(func(p map[string]any) { delete(p, "kid") }), want: []string{"{layer}", "annotation packet kid", "malformed"}},
	"packet-evil-key-id": {spoil: packet(func(p map[string]any) { p["kid"] = "kbs:///../../secret" }), want: []string{"{layer}", "annotation packet kid", "malformed"}},
	"packet-wrap-type":   {spoil: packet(func(p map[string]any) { p["wrap_type"] = "ROT13" }), want: []string{"{layer}", `wrap_type "ROT13"`, "A256GCM"}},
	"packet-short-iv":    {spoil: packet(func(p map[string]any) { p["iv"] = "AAAA" }), want: []string{"{layer}", "annotation packet iv has 3 bytes"}},
	"packet-no-data":     {spoil: packet(func(p map[string]any) { p["wrapped_data"] = "" }), want: []string{"{layer}", "wrapped_data of 0 bytes is too short"}},
	"packet-version":     {spoil: packet(func(p map[string]any) { p["version"] = "9" }), want: []string{"{layer}", "annotation packet version is not 0.1.0"}},
	"packet-unknown-key": {spoil: packet(func(p map[string]any) { p["surprise"] = 1 }), want: []string{"{layer}", "surprise"}},
	"packet-other-data": {
		spoil: packet(func(p map[string]any) { p["wrapped_data"] = base64.StdEncoding.EncodeToString(make([]byte, 300)) }),
		want:  []string{"{layer}", "key {key}", "the image's annotation was changed"},
	},
	"packet-other-data-ctr": {
		options: func(o *seal.Options) { o.Layers, o.Wrap = []int{1}, keyprovider.WrapCTR },
		spoil:   packet(func(p map[string]any) { p["wrapped_data"] = base64.StdEncoding.EncodeToString(make([]byte, 300)) }),
		want:    []string{"{layer}", "key {key}", "what it opens is not a key document"},
	},
	"no-options":       {spoil: annotate(pubOptsAnnotation, ""), want: []string{"{layer}", pubOptsAnnotation, "malformed"}},
	"options-not-json": {spoil: annotate(pubOptsAnnotation, "e30K!"), want: []string{"{layer}", pubOptsAnnotation, "malformed"}},
	"other-cipher":     {spoil: pubOpts(func(o map[string]any) { o["cipher"] = "DES" }), want: []string{"{layer}", `layer cipher "DES" is not supported`}},
	"plain-not-gzip": {
		options: onlyLayer(0), spoil: reblob(func([]byte) []byte { return []byte("this is no gzip") }),
		want: []string{"layer 2 of 2 ({layer})", "gzip header is malformed"},
	},
	"plain-cut": {
		options: onlyLayer(0), spoil: reblob(func(raw []byte) []byte { return raw[:len(raw)/2] }),
		want: []string{"layer 2 of 2 ({layer})", "unexpected EOF"},
	},
}

// contentFaultsIn starts containers from images that were damaged or tampered with and whose digests were made to fit, in a
// pod that holds their base. Afterwards the pod runs an image that is sound.
func contentFaultsIn(t *testing.T, node *harness.Node, pod *harness.Pod, registry *shop, broker *brokertest.Broker, base registrytest.Layer) {
	t.Helper()
	for name, tc := range contentFaults {
		t.Run(name, func(t *testing.T) {
			key := "kbs:///content/" + name + "/kek"
			reference := tc.build(t, registry, broker, base, name, key)
			layer := registry.manifest(t, name).Layers[1].Digest.String()
			pull(t, pod, reference)
			_, refused, fault := try(t.Context(), node, pod, name, reference, "/bin/true")
			if fault != nil {
				t.Fatal(fault)
			}
			words := strings.NewReplacer("{layer}", layer, "{key}", key)
			want := []string{reference}
			for _, part := range tc.want {
				want = append(want, words.Replace(part))
			}
			wantRefused(t, refused, want...)
		})
	}
	sound := contentFault{}
	reference := sound.build(t, registry, broker, base, "sound", "kbs:///content/sound/kek")
	if got := pullAndRun(t, node, pod, "sound", reference, "/bin/cat", "/case"); got != "sound" {
		t.Errorf("the sound image printed %q", got)
	}
	t.Run("signatures", func(t *testing.T) { checkSignatures(t, node, pod, broker, registry, base) })
}

// build makes the image of a case: a plain base, and an encrypted layer above it.
func (f *contentFault) build(t *testing.T, s *shop, broker *brokertest.Broker, base registrytest.Layer, name, key string) string {
	t.Helper()
	layer, options := f.layer, f.options
	if layer == nil {
		layer = packed(registrytest.Gzip)
	}
	if options == nil {
		options = onlyLayer(1)
	}
	files := registrytest.Files(map[string]string{"case": name, "noise": noise(16 << 10)})
	img := registrytest.NewImage([]registrytest.Layer{base, layer(files...)}, f.config, nil)
	reference := s.sealed(t, name, key, newKEK(t, broker, key), img, options)
	if f.spoil != nil {
		s.change(t, name, func(m *ocispec.Manifest) { f.spoil(t, s, m) })
	}
	return reference
}

func packed(packing string) func(...registrytest.Entry) registrytest.Layer {
	return func(entries ...registrytest.Entry) registrytest.Layer {
		return registrytest.NewLayer(packing, entries...)
	}
}

// reblob replaces the victim's bytes and makes the manifest fit them.
func reblob(edit func([]byte) []byte) func(*testing.T, *shop, *ocispec.Manifest) {
	return func(t *testing.T, s *shop, m *ocispec.Manifest) {
		t.Helper()
		raw, ok := s.GetBlob(m.Layers[1].Digest)
		if !ok {
			t.Fatal("the registry does not have the layer")
		}
		raw = edit(slices.Clone(raw))
		desc := registrytest.Descriptor(m.Layers[1].MediaType, raw)
		m.Layers[1].Digest, m.Layers[1].Size = desc.Digest, desc.Size
		s.PutBlob(desc.Digest, raw)
	}
}

func flipMiddle(raw []byte) []byte {
	raw[len(raw)/2] ^= 1
	return raw
}

// annotate sets an annotation of the victim, or removes it where the value is empty.
func annotate(name, value string) func(*testing.T, *shop, *ocispec.Manifest) {
	return func(_ *testing.T, _ *shop, m *ocispec.Manifest) {
		if m.Layers[1].Annotations[name] = value; value == "" {
			delete(m.Layers[1].Annotations, name)
		}
	}
}

// packet edits the victim's annotation packet; nil puts in its place what is no packet at all.
func packet(edit func(map[string]any)) func(*testing.T, *shop, *ocispec.Manifest) {
	return document(keyprovider.LayerAnnotation, edit)
}

// pubOpts edits the victim's open cipher options.
func pubOpts(edit func(map[string]any)) func(*testing.T, *shop, *ocispec.Manifest) {
	return document(pubOptsAnnotation, edit)
}

func document(annotation string, edit func(map[string]any)) func(*testing.T, *shop, *ocispec.Manifest) {
	return func(t *testing.T, _ *shop, m *ocispec.Manifest) {
		t.Helper()
		raw, err := base64.StdEncoding.DecodeString(m.Layers[1].Annotations[annotation])
		if err != nil {
			t.Fatal(err)
		}
		var content map[string]any
		if err := json.Unmarshal(raw, &content); err != nil {
			t.Fatal(err)
		}
		if edit == nil {
			raw = []byte("no document")
		} else {
			edit(content)
			if raw, err = json.Marshal(content); err != nil {
				t.Fatal(err)
			}
		}
		m.Layers[1].Annotations[annotation] = base64.StdEncoding.EncodeToString(raw)
	}
}
