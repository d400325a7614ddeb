package volume

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

// guestPull is what Coffer's snapshotter writes.
func guestPull() *Volume {
	return &Volume{
		VolumeType: TypeImageGuestPull,
		Source:     "registry.example.com/team/app:1.2",
		ImagePull: &ImagePull{Metadata: map[string]string{
			MetadataImageRef:       "registry.example.com/team/app:1.2",
			MetadataManifestDigest: "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
			MetadataProxyMode:      "true",
			MetadataPlatform:       "linux/amd64",
		}},
	}
}

func encode(doc string) string { return OptionPrefix + base64.StdEncoding.EncodeToString([]byte(doc)) }

// TestGolden pins the JSON that peers read; oracle/ checks the same files with nydus-snapshotter's own type.
func TestGolden(t *testing.T) {
	salt, format, bare := "00", uint32(1), true
	for name, v := range map[string]*Volume{
		"guest-pull":       guestPull(),
		"guest-pull-bare":  {VolumeType: TypeImageGuestPull, Source: DummySource, ImagePull: &ImagePull{}},
		"direct-block":     {VolumeType: TypeDirectBlock, Source: "/dev/vdb", FSType: "ext4", Options: []string{"ro"}, DirectVolume: &DirectVolume{}},
		"image-nydus-fs":   {VolumeType: TypeImageNydusFS, Source: "/meta", FSType: "rafsv6", NydusImage: &NydusImage{Config: "{}", SnapshotDir: "/s"}},
		"image-raw-verity": {VolumeType: TypeImageRawBlock, Source: "/disk", FSType: "erofs", DMVerity: verity()},
		"kata-verity": {VolumeType: TypeLayerRawBlock, Source: "/disk", DMVerity: func() *DMVerity {
			d := verity()
			d.Salt, d.HashFormat, d.NoSuperblock = &salt, &format, &bare
			return d
		}()},
	} {
		t.Run(name, func(t *testing.T) {
			option, err := v.Option()
			if err != nil {
				t.Fatal(err)
			}
			raw, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(option, OptionPrefix))
			if err != nil {
				t.Fatal(err)
			}
			want, err := os.ReadFile(filepath.Join("testdata", name+".json"))
			if err != nil {
				t.Fatalf("%v; the document is now\n%s", err, raw)
			}
			if string(raw) != strings.TrimSpace(string(want)) {
				t.Errorf("document is\n%s\nwant\n%s", raw, want)
			}
			back, err := Parse(option)
			if err != nil {
				t.Fatal(err)
			}
			again, err := back.Option()
			if err != nil || again != option {
				t.Errorf("document changes when it is read and written: %v\n%s\n%s", err, option, again)
			}
		})
	}
}

func verity() *DMVerity {
	return &DMVerity{HashType: "sha256", Hash: strings.Repeat("ab", 32), BlockNum: 8, BlockSize: 512, HashSize: 4096, Offset: 4096}
}

func TestParse(t *testing.T) {
	valid, err := guestPull().Option()
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		option string
		want   *Volume // nil: refused
	}{
		"ours":                   {valid, guestPull()},
		"kata without metadata":  {encode(`{"volume_type":"image_guest_pull","image_pull":{}}`), &Volume{VolumeType: TypeImageGuestPull, ImagePull: &ImagePull{}}},
		"no prefix":              {strings.TrimPrefix(valid, OptionPrefix), nil},
		"no base64":              {OptionPrefix + "{}", nil},
		"url base64":             {OptionPrefix + "eyJ2b2x1bWVfdHlwZSI6Ij8_In0", nil},
		"no json":                {encode("volume"), nil},
		"two documents":          {encode(`{"volume_type":"image_guest_pull","image_pull":{}}{}`), nil},
		"unknown field":          {encode(`{"volume_type":"image_guest_pull","image_pull":{},"key":"x"}`), nil},
		"unknown type":           {encode(`{"volume_type":"image_host_pull","image_pull":{}}`), nil},
		"no type":                {encode(`{"image_pull":{}}`), nil},
		"guest pull without it":  {encode(`{"volume_type":"image_guest_pull","source":"a"}`), nil},
		"block without source":   {encode(`{"volume_type":"image_raw_block"}`), nil},
		"nydus without settings": {encode(`{"volume_type":"image_nydus_fs","source":"a"}`), nil},
		"direct without data":    {encode(`{"volume_type":"direct_block","source":"a"}`), nil},
		"huge":                   {encode(`{"volume_type":"image_guest_pull","image_pull":{},"source":"` + strings.Repeat("a", maxParsedOption) + `"}`), nil},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Parse(test.option)
			if test.want == nil {
				if !errdefs.IsInvalidArgument(err) {
					t.Fatalf("got %+v, %v; want it refused as invalid", got, err)
				}
				return
			}
			if err != nil || !reflect.DeepEqual(got, test.want) {
				t.Errorf("got %+v, %v; want %+v", got, err, test.want)
			}
		})
	}
}

func TestOptionRefuses(t *testing.T) {
	large := guestPull()
	large.ImagePull.Metadata["containerd.io/snapshot/cri.image-layers"] = strings.Repeat("sha256:0", 400)
	for name, test := range map[string]struct {
		volume *Volume
		want   error
	}{
		"incomplete": {&Volume{VolumeType: TypeImageGuestPull}, errdefs.ErrInvalidArgument},
		"too large":  {large, errdefs.ErrOutOfRange},
	} {
		t.Run(name, func(t *testing.T) {
			if option, err := test.volume.Option(); !errors.Is(err, test.want) {
				t.Errorf("got %q, %v; want %v", option, err, test.want)
			}
		})
	}
}

func TestFromOptions(t *testing.T) {
	one, err := guestPull().Option()
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		options []string
		found   bool
		want    error
	}{
		"none":            {nil, false, nil},
		"others only":     {[]string{"ro", "lowerdir=/a:/b", "io.katacontainers.volumes=x"}, false, nil},
		"among others":    {[]string{"ro", one, "extraoption=abc"}, true, nil},
		"two":             {[]string{one, one}, false, errdefs.ErrInvalidArgument},
		"broken":          {[]string{OptionPrefix + "%"}, false, errdefs.ErrInvalidArgument},
		"broken, then ok": {[]string{OptionPrefix, one}, false, errdefs.ErrInvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			v, found, err := FromOptions(test.options)
			if found != test.found || !errors.Is(err, test.want) || (v != nil) != test.found {
				t.Errorf("got %+v, %v, %v; want found %v, %v", v, found, err, test.found, test.want)
			}
		})
	}
}

// FuzzParse: whatever is accepted is a document that its own encoding says again.
func FuzzParse(f *testing.F) {
	valid, err := guestPull().Option()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(valid)
	f.Add(encode(`{"volume_type":"image_raw_block","source":"/a","dm_verity":{"hashtype":"sha256","salt":null}}`))
	f.Add(encode(`{"volume_type":"image_guest_pull","image_pull":{"metadata":null}}`))
	f.Fuzz(func(t *testing.T, option string) {
		v, err := Parse(option)
		if err != nil {
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("%v is not an invalid argument", err)
			}
			return
		}
		raw, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		again, err := Parse(encode(string(raw)))
		if len(raw) > maxParsedOption/2 {
			return // escaping may grow a document beyond the limit
		}
		if err != nil || !reflect.DeepEqual(v, again) {
			t.Errorf("%+v became %+v, %v", v, again, err)
		}
	})
}
