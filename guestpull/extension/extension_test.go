package extension

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/guestpull/scratch/devmapper"
)

const (
	root  = "root_hash=00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"
	sizes = "data_blocks=300,data_block_size=4096,hash_block_size=4096"
	good  = root + ",salt=abcd," + sizes
)

func TestParseParam(t *testing.T) {
	for name, tc := range map[string]struct {
		param, value string
		wantErr      error
	}{
		"good":              {"kata.extension.gpu.verity_params", good, nil},
		"no salt":           {"kata.extension.coco.verity_params", root + ",salt=," + sizes, nil},
		"another order":     {"kata.extension.gpu.verity_params", sizes + ",salt=00," + root, nil},
		"nothing":           {"kata.extension.gpu.verity_params", "", errdefs.ErrInvalidArgument},
		"salt missing":      {"kata.extension.gpu.verity_params", root + "," + sizes, errdefs.ErrInvalidArgument},
		"root hash missing": {"kata.extension.gpu.verity_params", "salt=00," + sizes, errdefs.ErrInvalidArgument},
		"root hash short":   {"kata.extension.gpu.verity_params", strings.Replace(good, "ff,", ",", 1), errdefs.ErrInvalidArgument},
		"twice":             {"kata.extension.gpu.verity_params", good + ",salt=abcd", errdefs.ErrInvalidArgument},
		"unknown field":     {"kata.extension.gpu.verity_params", good + ",hash=md5", errdefs.ErrInvalidArgument},
		"no blocks":         {"kata.extension.gpu.verity_params", strings.Replace(good, "=300", "=0", 1), errdefs.ErrInvalidArgument},
		"endless blocks":    {"kata.extension.gpu.verity_params", strings.Replace(good, "=300", "=9223372036854775807", 1), errdefs.ErrInvalidArgument},
		"odd block size":    {"kata.extension.gpu.verity_params", strings.Replace(good, "data_block_size=4096", "data_block_size=4095", 1), errdefs.ErrInvalidArgument},
		"huge block size":   {"kata.extension.gpu.verity_params", strings.Replace(good, "hash_block_size=4096", "hash_block_size=8192", 1), errdefs.ErrInvalidArgument},
		"long salt":         {"kata.extension.gpu.verity_params", strings.Replace(good, "abcd", strings.Repeat("ab", 257), 1), errdefs.ErrInvalidArgument},
		"name with path":    {"kata.extension.../x.verity_params", good, errdefs.ErrInvalidArgument},
		"name too long":     {"kata.extension.elevenchars.verity_params", good, errdefs.ErrInvalidArgument},
		"no name":           {"kata.extension..verity_params", good, errdefs.ErrInvalidArgument},
		"another parameter": {"kata.extension.gpu.mode", "raw", errdefs.ErrInvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := ParseParam(tc.param, tc.value); !errors.Is(err, tc.wantErr) {
				t.Errorf("got %v, want %v", err, tc.wantErr)
			}
		})
	}
}

func TestTable(t *testing.T) {
	image, err := ParseParam("kata.extension.gpu.verity_params", good)
	if err != nil {
		t.Fatal(err)
	}
	d := disk{data: partition{"/dev/vdb1", 300 * 4096}, hash: partition{"/dev/vdb2", 4 * 4096}}
	if err := image.fits(d); err != nil {
		t.Errorf("disk of the right size: %v", err)
	}
	got := image.table(d)
	want := "1 /dev/vdb1 /dev/vdb2 4096 4096 300 0 sha256 00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff abcd"
	if string(got.Params) != want || got.Sectors != 300*4096/devmapper.SectorSize || !got.ReadOnly {
		t.Errorf("got %s %+v", got.Params, got)
	}
	// 300 blocks have a tree of three and one.
	for name, small := range map[string]disk{
		"data": {data: partition{size: 300*4096 - 1}, hash: d.hash}, "tree": {data: d.data, hash: partition{size: 4*4096 - 1}},
	} {
		if err := image.fits(small); !errors.Is(err, errdefs.ErrFailedPrecondition) {
			t.Errorf("%s is too small: %v", name, err)
		}
	}
}

func TestFind(t *testing.T) {
	gpu := map[string]string{
		"vdb/serial": "extension-gpu", "vdb/vdb1/partition": "1\n", "vdb/vdb1/size": "8\n", "vdb/vdb2/partition": "2\n", "vdb/vdb2/size": "16\n",
		"vdb/queue/depth": "1", "vda/serial": "scratch",
	}
	with := func(more map[string]string) map[string]string {
		out := maps.Clone(gpu)
		maps.Copy(out, more)
		return out
	}
	without := func(names ...string) map[string]string {
		out := maps.Clone(gpu)
		for _, name := range names {
			delete(out, name)
		}
		return out
	}
	promised := []Image{{Name: "gpu"}}
	for name, tc := range map[string]struct {
		files   map[string]string
		images  []Image
		wantErr error
	}{
		"promised and there":       {gpu, promised, nil},
		"neither":                  {map[string]string{"vda/serial": "scratch"}, nil, nil},
		"promised and not there":   {map[string]string{"vda/serial": "scratch"}, promised, errdefs.ErrFailedPrecondition},
		"there and not promised":   {gpu, nil, errdefs.ErrFailedPrecondition},
		"another one promised":     {gpu, []Image{{Name: "gpu"}, {Name: "coco"}}, errdefs.ErrFailedPrecondition},
		"another one there":        {with(map[string]string{"vdc/serial": "extension-coco"}), promised, errdefs.ErrFailedPrecondition},
		"two disks":                {with(map[string]string{"vdc/serial": "extension-gpu"}), promised, errdefs.ErrFailedPrecondition},
		"no hash tree":             {without("vdb/vdb2/partition"), promised, errdefs.ErrFailedPrecondition},
		"no partitions":            {without("vdb/vdb1/partition", "vdb/vdb2/partition"), promised, errdefs.ErrFailedPrecondition},
		"serial that is a path":    {with(map[string]string{"vdc/serial": "extension-../x"}), promised, errdefs.ErrFailedPrecondition},
		"partition without end":    {with(map[string]string{"vdb/vdb1/size": "9223372036854775807"}), promised, errdefs.ErrFailedPrecondition},
		"more than can be":         {gpu, make([]Image, maxImages+1), errdefs.ErrFailedPrecondition},
		"size that is not a count": {with(map[string]string{"vdb/vdb2/size": "-1"}), promised, errdefs.ErrFailedPrecondition},
	} {
		t.Run(name, func(t *testing.T) {
			disks, err := find(tree(t, tc.files))
			if err == nil {
				err = plan(tc.images, disks)
			}
			if !errors.Is(err, tc.wantErr) {
				t.Fatalf("got %v, want %v", err, tc.wantErr)
			}
			if want := (disk{partition{"/dev/vdb1", 4096}, partition{"/dev/vdb2", 8192}}); err == nil && len(tc.images) > 0 && disks["gpu"] != want {
				t.Errorf("got %+v", disks["gpu"])
			}
		})
	}
}

func TestManifest(t *testing.T) {
	const usual = "bin/tool"
	for name, tc := range map[string]struct {
		files   map[string]string
		path    string
		wantErr error
	}{
		"none":          {map[string]string{"bin/tool": ""}, usual, nil},
		"names it":      {map[string]string{manifestName: "schema_version = 1\n[paths]\ntool = \"usr/tool\"\n"}, "usr/tool", nil},
		"from the root": {map[string]string{manifestName: "schema_version = 1\n[paths]\ntool = \"/usr/tool\"\n"}, "usr/tool", nil},
		"names others":  {map[string]string{manifestName: "schema_version = 1\n[[process]]\nid = \"x\"\nlevel = 1\n"}, usual, nil},
		"no version":    {map[string]string{manifestName: "[paths]\n"}, "", errdefs.ErrFailedPrecondition},
		"next version":  {map[string]string{manifestName: "schema_version = 2\n"}, "", errdefs.ErrFailedPrecondition},
		"leaves":        {map[string]string{manifestName: "schema_version = 1\n[paths]\ntool = \"../../bin/sh\"\n"}, "", errdefs.ErrFailedPrecondition},
		"empty path":    {map[string]string{manifestName: "schema_version = 1\n[paths]\ntool = \"\"\n"}, "", errdefs.ErrFailedPrecondition},
		"garbage":       {map[string]string{manifestName: "\x00\x01"}, "", errdefs.ErrFailedPrecondition},
		"too large":     {map[string]string{manifestName: "schema_version = 1\n" + strings.Repeat("#\n", maxManifest/2)}, "", errdefs.ErrFailedPrecondition},
	} {
		t.Run(name, func(t *testing.T) {
			top := tree(t, map[string]string{"gpu/x": ""})
			dir := filepath.Join(top, "gpu")
			write(t, dir, tc.files)
			all, err := mountedIn(top)
			if !errors.Is(err, tc.wantErr) {
				t.Fatalf("got %v, want %v", err, tc.wantErr)
			}
			if err != nil {
				return
			}
			if len(all) != 1 || all[0].Name != "gpu" || all[0].Path("tool", usual) != filepath.Join(dir, tc.path) {
				t.Errorf("got %+v", all[0])
			}
		})
	}
	if all, err := mountedIn(filepath.Join(t.TempDir(), "none")); err != nil || all != nil {
		t.Errorf("no extensions: %v, %v", all, err)
	}
}

func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	top := t.TempDir()
	write(t, top, files)
	return top
}

func write(t *testing.T, top string, files map[string]string) {
	t.Helper()
	for _, name := range slices.Sorted(maps.Keys(files)) {
		file := filepath.Join(top, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(files[name]), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func FuzzParseParam(f *testing.F) {
	f.Add("kata.extension.gpu.verity_params", good)
	f.Add("kata.extension..verity_params", "root_hash=,salt")
	f.Fuzz(func(t *testing.T, name, value string) {
		image, err := ParseParam(name, value)
		if err != nil {
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("class of %v", err)
			}
			return
		}
		if filepath.Join(Root, image.Name) != Root+"/"+image.Name || image.size() <= 0 || len(image.RootHash) != hashSize {
			t.Errorf("took %q: %+v", value, image)
		}
		// No value reaches the device mapper's table as another word.
		if words := strings.Fields(string(image.table(disk{partition{"a", 1}, partition{"b", 1}}).Params)); len(words) != 10 {
			t.Errorf("table %q", words)
		}
	})
}

func FuzzManifest(f *testing.F) {
	f.Add([]byte("schema_version = 1\n[paths]\ntool = \"usr/tool\"\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		paths, err := parseManifest(data)
		if err != nil && !errdefs.IsFailedPrecondition(err) {
			t.Errorf("class of %v", err)
		}
		e := &Extension{Dir: "/e", paths: paths}
		for component := range paths {
			if got := e.Path(component, ""); !strings.HasPrefix(got, "/e/") && got != "/e" {
				t.Errorf("%q is at %s", component, got)
			}
		}
	})
}
