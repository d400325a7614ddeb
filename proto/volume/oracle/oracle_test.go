// Package oracle checks the volume document against nydus-snapshotter's own type. It is a module of its own, because
// that snapshotter brings cloud and cluster clients which Coffer itself must never depend on.
package oracle

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	nydus "github.com/containerd/nydus-snapshotter/snapshot"

	"github.com/coffer-project/coffer/proto/volume"
)

// TestGolden: the peer accepts each document that our tests pin, and writes the same bytes for it.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("../testdata/*.json")
	if err != nil || len(files) < 5 {
		t.Fatalf("found %d documents, %v", len(files), err)
	}
	for _, file := range files {
		if strings.HasPrefix(filepath.Base(file), "kata-") {
			continue // fields that only Kata's own runtime has
		}
		t.Run(filepath.Base(file), func(t *testing.T) {
			raw, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			peer, err := nydus.ParseKataVirtualVolume(raw)
			if err != nil {
				t.Fatal(err)
			}
			encoded, err := nydus.EncodeKataVirtualVolumeToBase64(*peer)
			if err != nil {
				t.Fatal(err)
			}
			ours, err := volume.Parse(nydus.KataVirtualVolumeOptionName + "=" + encoded)
			if err != nil {
				t.Fatal(err)
			}
			option, err := ours.Option()
			if err != nil {
				t.Fatal(err)
			}
			if option != nydus.KataVirtualVolumeOptionName+"="+encoded {
				t.Errorf("we write\n%s\nthe peer\n%s", option, encoded)
			}
		})
	}
}

// TestFields: both types have the same JSON names, so that no field of the peer's is lost or refused.
func TestFields(t *testing.T) {
	for name, test := range map[string]struct {
		ours, peer reflect.Type
		extra      []string
	}{
		"volume":        {reflect.TypeFor[volume.Volume](), reflect.TypeFor[nydus.KataVirtualVolume](), nil},
		"image pull":    {reflect.TypeFor[volume.ImagePull](), reflect.TypeFor[nydus.ImagePullVolume](), nil},
		"direct volume": {reflect.TypeFor[volume.DirectVolume](), reflect.TypeFor[nydus.DirectAssignedVolume](), nil},
		"nydus image":   {reflect.TypeFor[volume.NydusImage](), reflect.TypeFor[nydus.NydusImageVolume](), nil},
		"dm-verity":     {reflect.TypeFor[volume.DMVerity](), reflect.TypeFor[nydus.DmVerityInfo](), []string{"salt", "hash_type", "no_superblock"}},
	} {
		t.Run(name, func(t *testing.T) {
			if got, want := tags(test.ours), append(tags(test.peer), test.extra...); !reflect.DeepEqual(got, want) {
				t.Errorf("fields are %v, want %v", got, want)
			}
		})
	}
	for ours, peer := range map[string]string{
		volume.TypeImageGuestPull: nydus.KataVirtualVolumeImageGuestPullType, volume.TypeDirectBlock: nydus.KataVirtualVolumeDirectBlockType,
		volume.TypeImageRawBlock: nydus.KataVirtualVolumeImageRawBlockType, volume.TypeLayerRawBlock: nydus.KataVirtualVolumeLayerRawBlockType,
		volume.TypeImageNydusBlock: nydus.KataVirtualVolumeImageNydusBlockType, volume.TypeLayerNydusBlock: nydus.KataVirtualVolumeLayerNydusBlockType,
		volume.TypeImageNydusFS: nydus.KataVirtualVolumeImageNydusFsType, volume.TypeLayerNydusFS: nydus.KataVirtualVolumeLayerNydusFsType,
		volume.DummySource: nydus.KataVirtualVolumeDummySource,
	} {
		if ours != peer {
			t.Errorf("constant is %q, the peer's %q", ours, peer)
		}
	}
}

func tags(t reflect.Type) (out []string) {
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		out = append(out, name)
	}
	return out
}

// TestProxyMode is the document of a snapshotter in proxy mode that knows nothing but its labels.
func TestProxyMode(t *testing.T) {
	labels := map[string]string{volume.MetadataProxyMode: "true", volume.MetadataLayerDigest: "sha256:" + strings.Repeat("0", 64)}
	raw, err := json.Marshal(nydus.KataVirtualVolume{
		VolumeType: nydus.KataVirtualVolumeImageGuestPullType,
		Source:     nydus.KataVirtualVolumeDummySource,
		Options:    []string{volume.MetadataProxyMode + "=true"},
		ImagePull:  &nydus.ImagePullVolume{Metadata: labels},
	})
	if err != nil {
		t.Fatal(err)
	}
	peer, err := nydus.ParseKataVirtualVolume(raw)
	if err != nil {
		t.Fatal(err)
	}
	encoded, err := nydus.EncodeKataVirtualVolumeToBase64(*peer)
	if err != nil {
		t.Fatal(err)
	}
	v, found, err := volume.FromOptions([]string{"workdir=/w", nydus.KataVirtualVolumeOptionName + "=" + encoded})
	if err != nil || !found {
		t.Fatalf("found %v, %v", found, err)
	}
	if v.Source != volume.DummySource || !reflect.DeepEqual(v.ImagePull.Metadata, labels) {
		t.Errorf("document is %+v", v)
	}
}
