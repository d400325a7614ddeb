package boot

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func TestParseModules(t *testing.T) {
	tests := map[string]struct {
		text    string
		want    []module
		wantErr error
	}{
		"empty": {"# nothing\n\n", nil, nil},
		"two": {"transport required virtio:19 /lib/modules/6/vsock.ko\ndevices optional - /lib/modules/6/rng.ko\n", []module{
			{"transport", true, "virtio:19", "/lib/modules/6/vsock.ko"}, {"devices", false, "-", "/lib/modules/6/rng.ko"},
		}, nil},
		"words":             {"devices required /lib/modules/6/a.ko", nil, errdefs.ErrInvalidArgument},
		"need":              {"devices maybe - /lib/modules/6/a.ko", nil, errdefs.ErrInvalidArgument},
		"condition":         {"devices required moon:full /lib/modules/6/a.ko", nil, errdefs.ErrInvalidArgument},
		"condition no kind": {"devices required virtio /lib/modules/6/a.ko", nil, errdefs.ErrInvalidArgument},
		"elsewhere":         {"devices required - /tmp/a.ko", nil, errdefs.ErrInvalidArgument},
		"climbs":            {"devices required - /lib/modules/../../tmp/a.ko", nil, errdefs.ErrInvalidArgument},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := parseModules([]byte(tt.text))
			if !errors.Is(err, tt.wantErr) || !slices.Equal(got, tt.want) {
				t.Errorf("got %+v, %v; want %+v, %v", got, err, tt.want, tt.wantErr)
			}
		})
	}
}

func TestLoad(t *testing.T) {
	errBad := errors.New("bad module")
	list := []module{
		{"devices", true, "-", "a"}, {"devices", true, "cpu:no", "b"}, {"devices", false, "-", "c"},
		{"devices", true, "cpu:yes", "d"}, {"other", true, "-", "e"}, {"devices", true, "-", "a"},
	}
	tests := map[string]struct {
		stage   string
		faults  map[string]error
		want    []string
		wantErr error
	}{
		"in order, once, where met": {"devices", nil, []string{"a", "c", "d"}, nil},
		"there already":             {"devices", map[string]error{"a": unix.EEXIST}, []string{"a", "c", "d"}, nil},
		"optional fails":            {"devices", map[string]error{"c": errBad}, []string{"a", "c", "d"}, nil},
		"required fails":            {"devices", map[string]error{"d": errBad}, []string{"a", "c", "d"}, errBad},
		"another stage":             {"other", nil, []string{"e"}, nil},
		"no such stage":             {"none", nil, nil, nil},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var tried []string
			l := newLoader(list)
			l.met = func(condition string) bool { return condition == "cpu:yes" }
			l.insert = func(path string) error { tried = append(tried, path); return tt.faults[path] }
			if err := l.load(t.Context(), tt.stage); !errors.Is(err, tt.wantErr) {
				t.Errorf("error %v, want %v", err, tt.wantErr)
			}
			if !slices.Equal(tried, tt.want) {
				t.Errorf("tried %v, want %v", tried, tt.want)
			}
		})
	}
	t.Run("context over", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := newLoader(list).load(ctx, "devices"); !errors.Is(err, context.Canceled) {
			t.Errorf("error %v", err)
		}
	})
}

func TestConditions(t *testing.T) {
	bus := t.TempDir()
	for name, id := range map[string]string{"virtio0": "0x0013\n", "virtio1": "0x0002\n", "virtio2": "junk"} {
		if err := os.MkdirAll(filepath.Join(bus, name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(bus, name, "device"), []byte(id), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for kind, want := range map[string]bool{"19": true, "2": true, "1": false} {
		if got := hasVirtio(bus, kind); got != want {
			t.Errorf("virtio %s: %t", kind, got)
		}
	}
	info := "processor : 0\nflags\t\t: fpu tdx_guest sse\nprocessor : 1\nflags\t\t: svm\n"
	for flag, want := range map[string]bool{"tdx_guest": true, "tdx": false, "svm": false} {
		if got := hasCPUFlag(info, flag); got != want {
			t.Errorf("cpu %s: %t", flag, got)
		}
	}
}
