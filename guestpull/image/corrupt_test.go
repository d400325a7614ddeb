package image_test

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coffer-project/coffer/guestpull/decrypt"
	"github.com/coffer-project/coffer/guestpull/image"
	"github.com/coffer-project/coffer/guestpull/registry"
	"github.com/coffer-project/coffer/guestpull/store"
	"github.com/coffer-project/coffer/guestpull/unpack"
	"github.com/coffer-project/coffer/guestpull/verify"
	rt "github.com/coffer-project/coffer/integration/registrytest"
	"github.com/coffer-project/coffer/integration/require"
	"github.com/coffer-project/coffer/proto/keyprovider"
)

const corruptions = 1000

// corruption is one way to change an image. It returns what the registry shall hold, and the reference to pull.
type corruption func(t *testing.T, rng *rand.Rand, r *rt.Registry, repo string, img *rt.Image) string

// corruptionsOf has, by name, changes on the way, which the digest in the reference must catch, and changes by somebody who
// may write to the registry and makes all digests right again, which the HMAC must catch, or the reader of the document.
func corruptionsOf() map[string]corruption {
	return map[string]corruption{
		"layer on the way":    onTheWay(func(img *rt.Image, n int) digest.Digest { return img.Layers[n%len(img.Layers)].Desc.Digest }),
		"config on the way":   onTheWay(func(img *rt.Image, _ int) digest.Digest { return img.Manifest.Config.Digest }),
		"manifest on the way": onTheWay(func(img *rt.Image, _ int) digest.Digest { return img.Desc.Digest }),
		"layer, digests right": func(_ *testing.T, rng *rand.Rand, r *rt.Registry, repo string, img *rt.Image) string {
			layers := slices.Clone(img.Layers)
			l := &layers[rng.IntN(len(layers))]
			l.Blob = mutate(rng, l.Blob)
			kind, annotations := l.Desc.MediaType, l.Desc.Annotations
			l.Desc = rt.Descriptor(kind, l.Blob)
			l.Desc.Annotations = annotations
			return r.Put(repo, "1", rt.NewImage(layers, nil, nil))
		},
		"key packet, digests right":     annotation(keyprovider.LayerAnnotation),
		"public options, digests right": annotation("org.opencontainers.image.enc.pubopts"),
		"config, digests right": func(_ *testing.T, rng *rand.Rand, r *rt.Registry, repo string, img *rt.Image) string {
			raw := mutate(rng, img.Blobs[img.Manifest.Config.Digest])
			changed := rt.NewImage(img.Layers, nil, func(m *ocispec.Manifest) { m.Config = rt.Descriptor(m.Config.MediaType, raw) })
			r.PutBlob(digest.FromBytes(raw), raw)
			return r.Put(repo, "1", changed)
		},
		"manifest, digests right": func(_ *testing.T, rng *rand.Rand, r *rt.Registry, repo string, img *rt.Image) string {
			r.Put(repo, "", img)
			r.PutManifest(repo, "1", img.Desc.MediaType, mutate(rng, img.Raw))
			return r.Ref(repo, "1")
		},
	}
}

func onTheWay(choose func(img *rt.Image, n int) digest.Digest) corruption {
	return func(_ *testing.T, rng *rand.Rand, r *rt.Registry, repo string, img *rt.Image) string {
		ref := r.Put(repo, "", img)
		victim := choose(img, rng.IntN(1000))
		if victim == img.Desc.Digest {
			r.PutManifest(repo, victim.String(), img.Desc.MediaType, mutate(rng, img.Raw))
		} else {
			r.PutBlob(victim, mutate(rng, img.Blobs[victim]))
		}
		return ref
	}
}

// annotation changes what is inside of an annotation's base64, or the text itself.
func annotation(key string) corruption {
	return func(t *testing.T, rng *rand.Rand, r *rt.Registry, repo string, img *rt.Image) string {
		t.Helper()
		victim := rng.IntN(len(img.Layers))
		changed := rt.NewImage(img.Layers, nil, func(m *ocispec.Manifest) {
			m.Layers = slices.Clone(m.Layers)
			text := m.Layers[victim].Annotations[key]
			raw, err := base64.StdEncoding.DecodeString(text)
			if err != nil {
				t.Fatal(err)
			}
			if rng.IntN(4) == 0 {
				text = strings.ToValidUTF8(string(mutate(rng, []byte(text))), "?")
			} else {
				text = base64.StdEncoding.EncodeToString(mutate(rng, raw))
			}
			others := m.Layers[victim].Annotations
			m.Layers[victim].Annotations = map[string]string{key: text}
			for k, v := range others {
				if k != key {
					m.Layers[victim].Annotations[k] = v
				}
			}
		})
		return r.Put(repo, "1", changed)
	}
}

// mutate changes bytes at the first, the last or any place: bits flipped, bytes replaced, cut, repeated, moved or added.
func mutate(rng *rand.Rand, in []byte) []byte {
	b := slices.Clone(in)
	// Bytes behind the last one are never asked for, so they are no change.
	for bytes.HasPrefix(b, in) {
		at := []int{0, len(b) / 2, len(b) - 1, rng.IntN(len(b))}[rng.IntN(4)]
		n := 1 + rng.IntN(min(32, len(b)-at))
		switch rng.IntN(7) {
		case 0:
			b[at] ^= 1 << rng.IntN(8)
		case 1:
			b[at] = byte(rng.Uint32())
		case 2:
			b = b[:at]
		case 3:
			b = slices.Delete(b, at, at+n)
		case 4:
			b = slices.Insert(b, at, slices.Clone(b[at:at+n])...)
		case 5:
			other := rng.IntN(len(b))
			b[at], b[other] = b[other], b[at]
		case 6:
			clear(b[at : at+n])
		}
		if len(b) == 0 {
			b = []byte{byte(rng.Uint32())}
		}
	}
	return b
}

// TestRandomCorruptions changes a valid encrypted image in a thousand ways. Each pull must give an error that has a class
// and leaves nothing behind, or exactly the files of the valid image.
func TestRandomCorruptions(t *testing.T) {
	require.Root(t)
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("COFFER_SEED"); text != "" {
		if _, err := fmt.Sscan(text, &seed); err != nil {
			t.Fatalf("COFFER_SEED: %v", err)
		}
	}
	t.Logf("COFFER_SEED=%d repeats this run", seed)
	img := rt.NewImage([]rt.Layer{
		encrypt(t, rt.NewLayer(rt.Gzip, rt.Files(map[string]string{"bin/a": strings.Repeat("abc", 700), "etc/b": "b"})...), keyprovider.WrapGCM),
		encrypt(t, rt.NewLayer(rt.Zstd, rt.Files(map[string]string{"bin/c": strings.Repeat("c", 900)})...), keyprovider.WrapCTR),
		encrypt(t, rt.NewLayer(rt.Plain, rt.Files(map[string]string{"bin/d": "d"})...), keyprovider.WrapGCM),
	}, nil, nil)
	r := rt.Start(t)
	base := require.Tmpfs(t, 0, "size=256m")
	want, err := corrupted(t, r, filepath.Join(base, "valid"), r.Put("valid", "", img), "valid")
	if err != nil {
		t.Fatal(err)
	}
	kinds := corruptionsOf()
	names := make([]string, 0, len(kinds))
	for name := range kinds {
		names = append(names, name)
	}
	slices.Sort(names)

	var (
		mu       sync.Mutex
		outcomes = map[string]int{}
		wg       sync.WaitGroup
		slots    = make(chan struct{}, 8)
	)
	for i := range corruptions {
		name := names[i%len(names)]
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			id := fmt.Sprintf("c%d", i)
			// A registry of its own: two corruptions of one blob would meet in the same.
			own := rt.Start(t)
			defer own.Close()
			ref := kinds[name](t, rand.New(rand.NewPCG(seed, uint64(i))), own, "app", img)
			got, err := corrupted(t, own, filepath.Join(base, id), ref, id)
			outcome := "same files"
			switch {
			case err != nil:
				outcome = class(err)
				if outcome == "" {
					t.Errorf("%d (%s): error without a class: %v", i, name, err)
				}
			case !slices.Equal(got, want):
				t.Errorf("%d (%s): other files were published:\n%q", i, name, got)
			case strings.HasSuffix(name, "on the way"):
				t.Errorf("%d (%s): was not noticed", i, name)
			}
			mu.Lock()
			defer mu.Unlock()
			outcomes[name+": "+outcome]++
		})
	}
	wg.Wait()
	var lines []string
	for outcome, n := range outcomes {
		lines = append(lines, fmt.Sprintf("%4d %s", n, outcome))
	}
	slices.SortFunc(lines, func(a, b string) int { return strings.Compare(a[5:], b[5:]) })
	t.Logf("outcomes:\n%s", strings.Join(lines, "\n"))
}

// corrupted pulls to a fresh store. Without an error it returns the files; in the end the store must be empty.
func corrupted(t *testing.T, r *rt.Registry, dir, ref, id string) (files []string, err error) {
	t.Helper()
	client, err := registry.New(registry.Config{
		Registries: []registry.Registry{{Prefix: r.Addr(), PlainHTTP: true}}, Attempts: 1, IdleTimeout: 10 * time.Second,
	})
	if err != nil {
		t.Error(err)
		return nil, err
	}
	s, err := store.Open(dir)
	if err != nil {
		t.Error(err)
		return nil, err
	}
	p := image.New(client, verify.New(verify.DefaultLimits()), decrypt.New(fakeKeys{keyURI: kek()}),
		unpack.New(unpack.DefaultLimits(), unpack.WithSpace(s.Free)), s, image.WithPlatform("linux/amd64"), image.WithParallel(3))
	img, err := p.Pull(t.Context(), image.Request{ContainerID: id, Reference: ref})
	if err == nil {
		files = contents(t, img.Layers)
		if err := p.Release(t.Context(), id); err != nil {
			t.Error(err)
		}
	}
	for _, sub := range []string{"staging", "layers"} {
		if left, readErr := os.ReadDir(filepath.Join(dir, sub)); readErr != nil || len(left) != 0 {
			t.Errorf("%s: %s holds %v, %v", id, sub, left, readErr)
		}
	}
	return files, err
}

// contents lists the files of all layers.
func contents(t *testing.T, layers []string) (files []string) {
	t.Helper()
	for i, layer := range layers {
		err := filepath.WalkDir(layer, func(path string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() {
				return err
			}
			raw, err := os.ReadFile(path)
			name, _ := filepath.Rel(layer, path)
			files = append(files, fmt.Sprintf("%d %s %s", i, name, raw))
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
	return files
}

// class names what a caller of Pull can tell of an error; it is empty for one that says nothing.
func class(err error) string {
	for name, sentinel := range map[string]error{
		"wrong key": decrypt.ErrWrongKey, "no key": decrypt.ErrNoKey, "malformed annotation": decrypt.ErrMalformed, "tampered": decrypt.ErrTampered,
	} {
		if errors.Is(err, sentinel) {
			return name
		}
	}
	switch found := errdefs.Resolve(err); {
	case errdefs.IsUnknown(found):
		return ""
	default:
		return found.Error()
	}
}
