package disk

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

// passedFiles is an NVMe device behind a root port, as sysfs shows it to a kernel that knows several ways to a disk.
func passedFiles() map[string]string {
	const device = "pci/0000:00:10.0/0000:01:00.0/"
	return map[string]string{
		"pci/0000:00:10.0/pci_bus/0000:01/cpuaffinity": "", device + "class": "0x010802\n",
		device + "nvme/nvme0/nvme0c0n1/ro": "0\n", device + "nvme/nvme0/hwmon0/name": "nvme\n",
		"block/nvme0n1/dev": "259:1\n", "block/nvme0n1/ro": "0\n", "dev/nvme0n1": "",
	}
}

func TestFindPassed(t *testing.T) {
	const device = "pci/0000:00:10.0/0000:01:00.0/"
	one := map[string]Disk{"nvme0n1": {Major: 259, Minor: 1}}
	for name, tc := range map[string]struct {
		address string
		change  func(map[string]string)
		want    map[string]Disk
		wantErr error
	}{
		"disk": {address: "10/00", want: one},
		"its only way": {"10/00", func(m map[string]string) {
			delete(m, device+"nvme/nvme0/nvme0c0n1/ro")
			m[device+"nvme/nvme0/nvme0n1/ro"] = "0\n"
		}, one, nil},
		"two disks": {"10/00", func(m map[string]string) {
			m[device+"nvme/nvme0/nvme0c0n2/ro"], m["block/nvme0n2/dev"], m["block/nvme0n2/ro"], m["dev/nvme0n2"] = "1\n", "259:3\n", "1\n", ""
		}, map[string]Disk{"nvme0n1": {Major: 259, Minor: 1}, "nvme0n2": {Major: 259, Minor: 3, ReadOnly: true}}, nil},
		"no disk yet":    {"10/00", func(m map[string]string) { delete(m, device+"nvme/nvme0/nvme0c0n1/ro") }, nil, errdefs.ErrNotFound},
		"no number yet":  {"10/00", func(m map[string]string) { delete(m, "block/nvme0n1/dev") }, nil, errdefs.ErrNotFound},
		"not open yet":   {"10/00", func(m map[string]string) { delete(m, "dev/nvme0n1") }, nil, errdefs.ErrNotFound},
		"bad number":     {"10/00", func(m map[string]string) { m["block/nvme0n1/dev"] = "x\n" }, nil, errdefs.ErrFailedPrecondition},
		"a GPU":          {"10/00", func(m map[string]string) { m[device+"class"] = "0x030200\n" }, nil, nil},
		"another port":   {address: "10.1/00", wantErr: errdefs.ErrNotFound},
		"another device": {address: "10/01", wantErr: errdefs.ErrNotFound},
		"root bus":       {address: "10", wantErr: errdefs.ErrInvalidArgument},
		"deeper":         {address: "10/00/00", wantErr: errdefs.ErrInvalidArgument},
		"function 8":     {address: "10.8/00", wantErr: errdefs.ErrInvalidArgument},
		"traversal":      {address: "../10", wantErr: errdefs.ErrInvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			files := passedFiles()
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
			f := &Finder{root: filepath.Join(root, "pci"), nodes: filepath.Join(root, "dev"), blocks: filepath.Join(root, "block"), timeout: time.Millisecond}
			got, err := f.FindPassed(t.Context(), tc.address)
			if !errors.Is(err, tc.wantErr) || !maps.Equal(got, tc.want) {
				t.Errorf("got %+v, %v; want %+v, %v", got, err, tc.want, tc.wantErr)
			}
		})
	}
}

func FuzzCheckPassed(f *testing.F) {
	f.Add("10/00")
	f.Add("10.7/1f.1")
	f.Fuzz(func(t *testing.T, address string) {
		if CheckPassed(address) == nil && filepath.Join("/bus", "0000:00:"+address) != "/bus/0000:00:"+address {
			t.Errorf("%q was accepted", address)
		}
	})
}
