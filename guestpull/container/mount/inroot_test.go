package mount

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/integration/require"
)

func TestPinInRoot(t *testing.T) {
	require.Root(t)
	base := t.TempDir()
	root, outside := filepath.Join(base, "image"), filepath.Join(base, "outside")
	for path, link := range map[string]string{
		"models/": "", "run/": "", "file": "", "current": "models", "var/run": "/run", "escape": "../../outside", "absolute": outside, "dangling": "none",
	} {
		full := filepath.Join(root, path)
		err := os.MkdirAll(filepath.Dir(full), 0o755)
		switch {
		case path[len(path)-1] == '/':
			err = errors.Join(err, os.MkdirAll(full, 0o755), os.WriteFile(filepath.Join(full, "is"), []byte(path), 0o600))
		case link != "":
			err = errors.Join(err, os.Symlink(link, full))
		default:
			err = errors.Join(err, os.WriteFile(full, nil, 0o600))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Mkdir(outside, 0o755), os.WriteFile(filepath.Join(outside, "is"), []byte("outside"), 0o600)); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		rel     string
		create  bool
		want    string // what the folder says of itself, - for an empty one
		wantErr error
	}{
		"folder":                 {rel: "models", want: "models/"},
		"link":                   {rel: "current", want: "models/"},
		"absolute link inside":   {rel: "var/run", want: "run/"},
		"link out of the image":  {rel: "escape", wantErr: errdefs.ErrNotFound},
		"absolute link out":      {rel: "absolute", wantErr: errdefs.ErrNotFound},
		"missing":                {rel: "a/b", wantErr: errdefs.ErrNotFound},
		"missing, made":          {rel: "new/b/c", create: true, want: "-"},
		"missing below a link":   {rel: "var/run/app", create: true, want: "-"},
		"below a file":           {rel: "file/x", create: true, wantErr: errdefs.ErrInvalidArgument},
		"a link that is no path": {rel: "dangling", create: true, wantErr: os.ErrExist},
	} {
		t.Run(name, func(t *testing.T) {
			target := filepath.Join(t.TempDir(), "pin")
			var missing *Owner
			if tc.create {
				missing = &Owner{UID: 1000, GID: 1001}
			}
			err := PinInRoot(root, tc.rel, target, missing)
			if !errors.Is(err, tc.wantErr) {
				t.Fatalf("got %v, want %v", err, tc.wantErr)
			}
			if err != nil {
				return
			}
			defer func() {
				if err := Unmount(target); err != nil {
					t.Error(err)
				}
			}()
			got, err := os.ReadFile(filepath.Join(target, "is"))
			if tc.want == "-" {
				if entries, err := os.ReadDir(target); err != nil || len(entries) > 0 {
					t.Errorf("it has %v, %v", entries, err)
				}
				if info, err := os.Stat(target); err != nil || info.Sys().(*syscall.Stat_t).Uid != 1000 || info.Sys().(*syscall.Stat_t).Gid != 1001 {
					t.Errorf("it is somebody else's: %v, %v", info, err)
				}
			} else if err != nil || string(got) != tc.want {
				t.Errorf("it is %q, %v; want %q", got, err, tc.want)
			}
		})
	}
	if _, err := os.Stat(filepath.Join(root, "run/app")); err != nil {
		t.Errorf("the folder was made elsewhere: %v", err)
	}
	if entries, err := os.ReadDir(outside); err != nil || len(entries) != 1 {
		t.Errorf("outside the image there is %v, %v", entries, err)
	}
}
