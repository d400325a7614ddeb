package integration

import (
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// imageVolumes mounts images as volumes, an encrypted one among them, and runs an image that declares volumes itself.
// Nothing of any of them is on the host.
func imageVolumes(t *testing.T, l *lab) {
	t.Helper()
	secret := l.image
	defer func() { l.image = secret }()
	l.image = l.peopledImage(t, "declares", ocispec.ImageConfig{Volumes: map[string]struct{}{"/data": {}, "/absent/deep": {}}})
	twin := l.peopledImage(t, "twin", ocispec.ImageConfig{
		User: "app", Labels: map[string]string{"io.coffer/volume-paths": "home,data"},
	})
	volume := func(image, path, part string) *runtime.Mount {
		return &runtime.Mount{ContainerPath: path, Readonly: true, Image: &runtime.ImageSpec{Image: image}, ImageSubPath: part}
	}
	mounts := []*runtime.Mount{volume(secret, "/secret", ""), volume(twin, "/users", "etc"), volume(twin, "/twin", ""), volume(twin, "/part", "data")}

	const readOnly = ": Read-only file system"
	l.compare(t, func(c *runtime.ContainerConfig) {
		c.Mounts = mounts
		c.Linux.SecurityContext.ReadonlyRootfs = true
	}, map[string]string{
		"/secret/bin/busybox echo runs":                           "runs",
		"touch /secret/x 2>&1 || true":                            "touch: /secret/x" + readOnly,
		"head -n 1 /users/passwd; cat /twin/data/seed /part/seed": "root:x:0:0:root:/root:/bin/sh\nfrom the image\nfrom the image",
		"touch /users/x /twin/data/x 2>&1 || true":                "touch: /users/x" + readOnly + "\ntouch: /twin/data/x" + readOnly,
		"touch /x 2>&1 || true":                                   "touch: /x" + readOnly,
		"cat /data/seed; busybox stat -c '%u:%g %a' /data; echo mine > /data/seed; cat /data/seed": "from the image\n1000:1001 750\nmine",
		"touch /absent/deep/x; busybox stat -c '%u:%g %a' /absent/deep; ls /absent/deep":           "0:0 755\nx",
	})
	// What one container writes into a declared volume is its own.
	l.compare(t, nil, map[string]string{"cat /data/seed; ls /absent/deep": "from the image"})

	for name, tc := range map[string]struct{ part, want string }{
		"a part that the image does not name": {part: "etc/none", want: "no such file"},
		"a part that the image does not have": {part: "home", want: "/home is not in the image"},
		"a part outside the image":            {part: "../../etc", want: "escapes"},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := l.tryCreate(t, func(c *runtime.ContainerConfig) { c.Mounts = []*runtime.Mount{volume(twin, "/v", tc.part)} }, "/bin/true")
			if err == nil {
				err = c.Start(l.ctx(t))
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v", err)
			}
		})
	}
}
