package mediatype

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func TestParseLayer(t *testing.T) {
	cases := map[string]Layer{
		"application/vnd.oci.image.layer.v1.tar":                      {None, false},
		"application/vnd.oci.image.layer.v1.tar+gzip":                 {Gzip, false},
		"application/vnd.oci.image.layer.v1.tar+zstd":                 {Zstd, false},
		"application/vnd.oci.image.layer.v1.tar+encrypted":            {None, true},
		"application/vnd.oci.image.layer.v1.tar+gzip+encrypted":       {Gzip, true},
		"application/vnd.oci.image.layer.v1.tar+zstd+encrypted":       {Zstd, true},
		"application/vnd.docker.image.rootfs.diff.tar.gzip":           {Gzip, false},
		"application/vnd.docker.image.rootfs.diff.tar.gzip+encrypted": {Gzip, true},
		"application/vnd.docker.image.rootfs.diff.tar":                {None, false},
		"application/vnd.docker.image.rootfs.diff.tar+encrypted":      {None, true},
	}
	for name, want := range cases {
		t.Run(name, func(t *testing.T) {
			got, err := ParseLayer(name)
			if err != nil || got != want {
				t.Fatalf("got %+v, %v; want %+v", got, err, want)
			}
		})
	}
}

func TestParseLayerRefuses(t *testing.T) {
	cases := map[string]string{
		"empty":             "",
		"unknown pack":      "application/vnd.oci.image.layer.v1.tar+xz",
		"encrypted twice":   "application/vnd.oci.image.layer.v1.tar+encrypted+encrypted",
		"upper case":        "Application/vnd.oci.image.layer.v1.tar",
		"foreign":           "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
		"not distributable": "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd+encrypted",
		"erofs":             "application/vnd.erofs.layer.v1",
		"parameters":        "application/vnd.oci.image.layer.v1.tar; charset=x",
		"very long garbage": strings.Repeat("x", 1<<16),
	}
	for name, mediaType := range cases {
		t.Run(name, func(t *testing.T) {
			_, err := ParseLayer(mediaType)
			if !errdefs.IsNotImplemented(err) {
				t.Fatalf("got %v, want not implemented", err)
			}
			if len(err.Error()) > 400 {
				t.Fatalf("error has %d bytes", len(err.Error()))
			}
		})
	}
}
