package vfio_test

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/shim/device/vfio"
	"github.com/coffer-project/coffer/shim/device/vfio/vfiotest"
)

// BenchmarkBoard finds, reserves, adds and gives back the eight GPUs and four switches of a board, with a file system where a real
// machine has sysfs.
func BenchmarkBoard(b *testing.B) {
	tree := vfiotest.New(b, true, vfiotest.HGXH100()...)
	request := vfio.Request{
		Annotations: map[string]string{"cdi.k8s.io/pod": strings.Join(tree.WriteSpec(b, "nvidia.com/pgpu", tree.Addresses(nil)...), ",")},
		SpecDirs:    []string{tree.SpecDir},
	}
	m := &vfio.Manager{Host: tree.Host, Dir: filepath.Join(b.TempDir(), "devices"), MaxDevices: 32, Confidential: true}
	for b.Loop() {
		devices, err := tree.Host.Find(b.Context(), request)
		if err != nil {
			b.Fatal(err)
		}
		claim, err := m.Reserve(b.Context(), owner("a"), devices)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := claim.Add(b.Context()); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := claim.Remove(b.Context()); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
