package disk

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

// good is a disk behind a bridge, as sysfs shows it.
func good() map[string]string {
	const device = "0000:00:1e.0/0000:01:02.0/virtio3/"
	return map[string]string{
		"0000:00:1e.0/class": "0x060400\n", "0000:00:1e.0/pci_bus/0000:01/cpuaffinity": "",
		device + "device": "0x0002\n", device + "block/vdb/dev": "254:16\n", device + "block/vdb/ro": "0\n", "dev/vdb": "",
	}
}

func TestFind(t *testing.T) {
	const virtio = "0000:00:1e.0/0000:01:02.0/virtio3/"
	for name, tc := range map[string]struct {
		address string
		change  func(map[string]string)
		want    Disk
		wantErr error
	}{
		"disk":            {address: "1e/02", want: Disk{Major: 254, Minor: 16}},
		"read-only":       {"1e/02", func(m map[string]string) { m[virtio+"block/vdb/ro"] = "1\n" }, Disk{Major: 254, Minor: 16, ReadOnly: true}, nil},
		"another slot":    {address: "1e/03", wantErr: errdefs.ErrNotFound},
		"another bridge":  {address: "1d/02", wantErr: errdefs.ErrNotFound},
		"root bus":        {address: "1e", wantErr: errdefs.ErrInvalidArgument},
		"deeper":          {address: "1e/02/03", wantErr: errdefs.ErrInvalidArgument},
		"slot 32":         {address: "1e/20", wantErr: errdefs.ErrInvalidArgument},
		"traversal":       {address: "../1e", wantErr: errdefs.ErrInvalidArgument},
		"no bridge":       {"1e/02", func(m map[string]string) { m["0000:00:1e.0/class"] = "0x010000\n" }, Disk{}, errdefs.ErrFailedPrecondition},
		"network card":    {"1e/02", func(m map[string]string) { m[virtio+"device"] = "0x0001\n" }, Disk{}, errdefs.ErrFailedPrecondition},
		"bad number":      {"1e/02", func(m map[string]string) { m[virtio+"block/vdb/dev"] = "x\n" }, Disk{}, errdefs.ErrFailedPrecondition},
		"no driver yet":   {"1e/02", func(m map[string]string) { delete(m, virtio+"block/vdb/dev"); delete(m, virtio+"block/vdb/ro") }, Disk{}, errdefs.ErrNotFound},
		"not open yet":    {"1e/02", func(m map[string]string) { delete(m, "dev/vdb") }, Disk{}, errdefs.ErrNotFound},
		"half registered": {"1e/02", func(m map[string]string) { delete(m, virtio+"block/vdb/ro") }, Disk{}, errdefs.ErrNotFound},
	} {
		t.Run(name, func(t *testing.T) {
			files := good()
			if tc.change != nil {
				tc.change(files)
			}
			root := t.TempDir()
			for name, text := range files {
				path := filepath.Join(root, name)
				if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
					t.Fatal(err)
				}
			}
			got, err := (&Finder{root: root, nodes: filepath.Join(root, "dev"), timeout: time.Millisecond}).Find(t.Context(), tc.address)
			if !errors.Is(err, tc.wantErr) || got != tc.want {
				t.Errorf("got %+v, %v; want %+v, %v", got, err, tc.want, tc.wantErr)
			}
		})
	}
}

func FuzzCheckAddress(f *testing.F) {
	f.Add("1e/01")
	f.Fuzz(func(t *testing.T, address string) {
		if CheckAddress(address) == nil && (len(address) != 5 || address[2] != '/') {
			t.Errorf("%q was accepted", address)
		}
	})
}
