package integration

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coffer-project/coffer/integration/registrytest"
	"github.com/coffer-project/coffer/shim/sandbox"
)

// say prints what a process is made of.
const say = `echo $MODE $LANG "$(pwd)" $(id -u) "$@"`

// configured is an image whose configuration says all that a process is made of.
func (s *pullSite) configured() *registrytest.Image {
	return registrytest.NewImage([]registrytest.Layer{s.base, hello(registrytest.Gzip, "configured")}, func(c *ocispec.Image) {
		c.Config = ocispec.ImageConfig{
			User: "1000", WorkingDir: "/etc", Entrypoint: []string{"/bin/sh", "-c", say, "sh"}, Cmd: []string{"by", "default"},
			Env: []string{"PATH=/bin", "MODE=safe", "LANG=C"},
		}
	}, nil)
}

// imageConfig runs an image as its configuration says, and with what a pod may change of it. The guest tells the two apart.
func (s *pullSite) imageConfig(t *testing.T) {
	reference := s.registry.put("configured", s.configured())
	pull(t, s.pod, reference)
	cases := map[string]struct {
		edit func(*runtime.ContainerConfig)
		says string
		want sandbox.Process
	}{
		"as it is": {
			func(*runtime.ContainerConfig) {}, "safe C /etc 1000 by default",
			sandbox.Process{Arguments: "image", WorkingDir: "image", User: "image", EnvAdded: 1},
		},
		"changed by the pod": {
			func(c *runtime.ContainerConfig) {
				c.Args, c.WorkingDir = []string{"by", "pod"}, "/"
				c.Envs = []*runtime.KeyValue{{Key: "LANG", Value: []byte("de")}, {Key: "OWN", Value: []byte("1")}}
				c.Linux.SecurityContext.RunAsUser = &runtime.Int64Value{Value: 7}
			}, "safe de / 7 by pod",
			sandbox.Process{Arguments: "entrypoint", WorkingDir: "host", User: "host", EnvOverridden: []string{"LANG"}, EnvAdded: 2},
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) { s.configuredRun(t, reference, tc.edit, tc.says, tc.want) })
	}
}

// tamperedConfig changes the node's own copy of an image configuration, which containerd does not check again when it
// makes a process of it. The guest, which has verified another one, tells the difference.
func (s *pullSite) tamperedConfig(t *testing.T) {
	img := s.configured()
	img.Config.Author = "unlike the other"
	img = registrytest.NewImage(img.Layers, func(c *ocispec.Image) { *c = img.Config }, nil)
	reference := s.registry.put("tampered", img)
	// Another namespace of containerd's gets the content first; the pull for the pod then finds it there.
	ctr := func(args ...string) {
		if _, err := s.node.Ctr(t.Context(), append([]string{"-n", "elsewhere"}, args...)...); err != nil {
			t.Fatal(err)
		}
	}
	ctr(s.node.CtrPull(reference, "--plain-http")...)
	defer ctr("image", "remove", "--sync", reference)
	copies, err := filepath.Glob(filepath.Join(s.node.Dir, "*", "io.containerd.content.v1.content", "blobs", "sha256", img.Manifest.Config.Digest.Encoded()))
	if err != nil || len(copies) != 1 {
		t.Fatalf("copies of the configuration on the node: %q, %v", copies, err)
	}
	raw, err := os.ReadFile(copies[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, change := range [][2]string{{"MODE=safe", "MODE=evil"}, {`"1000"`, `"0000"`}, {`"default"`, `"tampers"`}} {
		raw = bytes.Replace(raw, []byte(change[0]), []byte(change[1]), 1)
	}
	if err := os.WriteFile(copies[0], raw, 0o600); err != nil {
		t.Fatal(err)
	}
	pull(t, s.pod, reference)
	s.configuredRun(t, reference, func(*runtime.ContainerConfig) {}, "evil C /etc 0 by tampers",
		sandbox.Process{Arguments: "entrypoint", WorkingDir: "image", User: "host", EnvAltered: []string{"MODE"}, EnvAdded: 1})
}

// configuredRun runs a container and compares what it prints and what the guest reports of its process.
func (s *pullSite) configuredRun(t *testing.T, reference string, edit func(*runtime.ContainerConfig), says string, want sandbox.Process) {
	t.Helper()
	name := strings.ReplaceAll(filepath.Base(t.Name()), ",", "")
	config := &runtime.ContainerConfig{
		Metadata: &runtime.ContainerMetadata{Name: name},
		Image:    &runtime.ImageSpec{Image: reference, UserSpecifiedImage: reference, RuntimeHandler: s.pod.Handler},
		LogPath:  name + ".log",
		Linux: &runtime.LinuxContainerConfig{SecurityContext: &runtime.LinuxContainerSecurityContext{
			NamespaceOptions: &runtime.NamespaceOption{Pid: runtime.NamespaceMode_CONTAINER},
		}},
	}
	edit(config)
	c, err := s.pod.CreateFrom(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := c.Run(t.Context()); err != nil || got != says+"\n" {
		t.Errorf("the container printed %q, %v; want %q", got, err, says)
	}
	got := s.report(t).Containers[c.ID].Process
	if got == nil {
		t.Fatal("the guest tells nothing of the process")
	}
	if got.Arguments != want.Arguments || got.WorkingDir != want.WorkingDir || got.User != want.User || got.EnvAdded != want.EnvAdded ||
		!slices.Equal(got.EnvOverridden, want.EnvOverridden) || !slices.Equal(got.EnvAltered, want.EnvAltered) || len(got.EnvRestored) > 0 {
		t.Errorf("the guest tells %+v, want %+v", *got, want)
	}
}
