package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coffer-project/coffer/integration/harness"
)

// shimConfig is the shim's where everything is some hundred times slower than on a real machine. The parameters spare the guest
// what protects it from others on its own machine: there are none.
const shimConfig = `accelerator = "tcg"
transport = "vsock"
kernel_params = ["init_on_alloc=0", "mitigations=off", "audit=0"]
[guest]
boot_timeout = "40m0s"
request_timeout = "10m0s"
[devices]
cold_plug_vfio = "root-port"
bind = true
pod_resource_api_sock = ""
cdi_spec_dirs = ["` + cdiDir + `"]
`

// impatient is the handler of pods that are given up before their guest can answer: for what happens around a VM, and not in it.
const impatient = "coffer-impatient"

var handlers = map[string]string{impatient: "[guest]\nboot_timeout = \"2s\"\n"}

// tests are a node and the image that its pods run.
type tests struct {
	node  *harness.Node
	image string
	begin time.Time
}

func (s *tests) say(format string, args ...any) {
	fmt.Printf("%6.1fs  %s\n", time.Since(s.begin).Seconds(), fmt.Sprintf(format, args...))
}

// step is one test; they build on each other's device.
type step struct {
	name string
	run  func(context.Context, *tests, *devices) error
}

var steps = []step{
	{"a device whose group others share is refused", refuseShared},
	{"a pod whose start fails gives its device back", failedStart},
	{"a pod whose shim and VM are killed leaves its device to the next", killedNode},
	{"a container has the device, over vsock", passThrough},
}

func runSteps(ctx context.Context) (retErr error) {
	s := &tests{begin: time.Now()}
	s.say("starting a node: registry, key broker, snapshotter, containerd")
	var err error
	if s.node, err = harness.Start(ctx, harness.Options{ShimConfig: shimConfig, Handlers: handlers}); err != nil {
		return err
	}
	defer func() { retErr = errors.Join(retErr, s.node.Close()) }()
	if s.image, err = s.pushImage(ctx); err != nil {
		return err
	}
	d, err := findDevices(ctx)
	if err != nil {
		return err
	}
	s.say("the node is up; %s", d)
	for _, step := range steps {
		s.say("%s", step.name)
		if err := step.run(ctx, s, d); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
	}
	return nil
}

// pushImage puts a small image into the node's registry.
func (s *tests) pushImage(ctx context.Context) (string, error) {
	dir := filepath.Join(s.node.Dir, "image")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", err
	}
	image, err := harness.NewLayout(dir, ocispec.ImageConfig{Env: []string{"PATH=/bin"}, Cmd: []string{"/bin/sh"}})
	if err != nil {
		return "", err
	}
	busybox, err := harness.Busybox(s.node.Tools.Busybox)
	if err != nil {
		return "", err
	}
	if err := image.AddLayer(busybox); err != nil {
		return "", err
	}
	reference := s.node.HTTP.Host + "/nested/busybox:v1"
	return reference, s.node.Ctl(ctx, true, "image", "copy", "oci:"+dir, reference, "--plain-http")
}
