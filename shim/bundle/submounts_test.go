package bundle

import (
	"path"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/integration/require"
)

// submountHost has two file systems below every folder.
type submountHost struct{ fakeHost }

func (submountHost) writableBelow(string) ([]string, error) {
	return []string{"cache", "cache/deep"}, nil
}

func TestReadOnlyMountWithMountsBelow(t *testing.T) {
	for name, test := range map[string]struct {
		options []string
		want    []string
	}{
		"read-only":             {options: []string{"rbind", "ro"}, want: []string{"/data", "/data/cache", "/data/cache/deep"}},
		"recursively read-only": {options: []string{"rbind", "rro"}, want: []string{"/data"}},
		"both":                  {options: []string{"rbind", "ro", "rro"}, want: []string{"/data"}},
		"this folder alone":     {options: []string{"bind", "ro"}, want: []string{"/data"}},
		"writable":              {options: []string{"rbind", "rw"}, want: []string{"/data"}},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, _ := captureLog(t.Context())
			b := parseFile(ctx, t, "cri-privileged.json")
			b.spec.Mounts = []specs.Mount{{Destination: "/data", Type: "bind", Source: "/srv/volumes/x", Options: test.options}}
			opts := Options{ContainerID: "c", Rootfs: testRootfs(t, guestPull("example.com/app:1"))}
			request, _, err := b.createRequest(ctx, opts, hostFiles, submountHost{})
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			copyPath := ""
			for _, m := range request.GetOCI().GetMounts() {
				got = append(got, m.GetDestination())
				if m.GetDestination() == "/data" {
					copyPath = m.GetSource()
					continue
				}
				if m.GetSource() != path.Join(copyPath, strings.TrimPrefix(m.GetDestination(), "/data")) || !slices.Contains(m.GetOptions(), "rw") {
					t.Errorf("mount below is %v", m)
				}
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("mounts are %q, want %q", got, test.want)
			}
		})
	}
}

func TestWritableBelow(t *testing.T) {
	require.Root(t)
	top := t.TempDir()
	mount(t, "tmpfs", top+"/b", "tmpfs", 0, "")
	mount(t, "tmpfs", top+"/a/deep", "tmpfs", 0, "")
	mount(t, "tmpfs", top+"/fixed", "tmpfs", unix.MS_RDONLY, "")
	mount(t, "tmpfs", top+"/hidden", "tmpfs", 0, "")
	mount(t, "tmpfs", top+"/hidden", "tmpfs", unix.MS_RDONLY, "")
	mount(t, "tmpfs", top+"-other/c", "tmpfs", 0, "")
	got, err := realHost{}.writableBelow(top)
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"a/deep", "b"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
