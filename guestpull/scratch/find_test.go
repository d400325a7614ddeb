package scratch

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
)

// sysfs makes a folder like the kernel's; keys are paths in it.
func sysfs(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestFind(t *testing.T) {
	for name, tc := range map[string]struct {
		files   map[string]string
		want    disk
		wantErr error
	}{
		"found": {
			files: map[string]string{"vda/serial": "initdata", "vda/size": "8\n", "vda/ro": "1\n", "vdb/serial": "scratch", "vdb/size": "2048\n", "vdb/ro": "0\n"},
			want:  disk{node: "/dev/vdb", size: 1 << 20},
		},
		"read-only": {
			files: map[string]string{"vda/serial": "scratch\n", "vda/size": "2048", "vda/ro": "1\n"},
			want:  disk{node: "/dev/vda", size: 1 << 20, readOnly: true},
		},
		"none":             {files: map[string]string{"vda/serial": "initdata"}, wantErr: errdefs.ErrNotFound},
		"of another kind":  {files: map[string]string{"sda/serial": "scratch", "sda/size": "8", "sda/ro": "0"}, wantErr: errdefs.ErrNotFound},
		"two":              {files: map[string]string{"vda/serial": "scratch", "vda/size": "8", "vda/ro": "0", "vdb/serial": "scratch"}, wantErr: errdefs.ErrFailedPrecondition},
		"impossible":       {files: map[string]string{"vda/serial": "scratch", "vda/size": "36028797018963969", "vda/ro": "0"}, wantErr: errdefs.ErrFailedPrecondition},
		"negative":         {files: map[string]string{"vda/serial": "scratch", "vda/size": "-8", "vda/ro": "0"}, wantErr: errdefs.ErrFailedPrecondition},
		"not to be parsed": {files: map[string]string{"vda/serial": "scratch", "vda/size": "many", "vda/ro": "0"}, wantErr: errdefs.ErrFailedPrecondition},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := find(sysfs(t, tc.files))
			if !errors.Is(err, tc.wantErr) || got != tc.want {
				t.Errorf("got %+v, %v", got, err)
			}
		})
	}
}

func TestOpenRefuses(t *testing.T) {
	if err := open(disk{node: "/dev/null", size: 1 << 30, readOnly: true}, Encrypted, t.TempDir()); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("read-only disk: %v", err)
	}
}

func TestPlace(t *testing.T) {
	p := NewPlace()
	got := make(chan string)
	go func() {
		dir, err := p.Dir(t.Context())
		if err != nil {
			t.Error(err)
		}
		got <- dir
	}()
	p.Set("/run/scratch", nil)
	if dir := <-got; dir != "/run/scratch" {
		t.Errorf("it is at %q", dir)
	}
}
