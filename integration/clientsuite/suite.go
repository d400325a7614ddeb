package main

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coffer-project/coffer/integration/harness"
	"github.com/coffer-project/coffer/integration/registrytest"
)

// registries are the hosts of the images that the tests name.
var registries = []string{"ghcr.io", "registry.k8s.io"}

// module is where the tests are.
const module = "github.com/containerd/containerd/v2"

// buildTests builds the tests of the version of containerd that this repository depends on, in a module of their own: they
// need more than it does.
func buildTests(ctx context.Context, out string) (string, error) {
	version, err := output(ctx, ".", "go", "list", "-m", "-f", "{{.Version}}", module)
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp("", "coffer-clientsuite")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	for name, text := range map[string]string{
		"go.mod":   "module clientsuite\n\ngo 1.26.0\n\nrequire " + module + " " + version + "\n",
		"tests.go": "//go:build tools\n\npackage clientsuite\n\nimport _ \"" + module + "/integration/client\"\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return "", err
		}
	}
	path, err := filepath.Abs(filepath.Join(out, "client.test"))
	if err != nil {
		return "", err
	}
	if _, err := output(ctx, dir, "go", "mod", "tidy"); err != nil {
		return "", err
	}
	_, err = output(ctx, dir, "go", "test", "-c", "-o", path, module+"/integration/client")
	return path, err
}

func output(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	out, err := cmd.Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		err = fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, exit.Stderr)
	}
	return strings.TrimSpace(string(out)), err
}

// runSuite runs the tests on a node of their own.
func runSuite(ctx context.Context, o options) (_ map[string]outcome, retErr error) {
	tests, err := filepath.Abs(o.tests)
	if err != nil {
		return nil, err
	}
	tools, err := harness.FindTools()
	if err != nil {
		return nil, err
	}
	bin, err := os.MkdirTemp("", "coffer-clientsuite-bin")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(bin)
	if err := placeShim(ctx, bin, tools); err != nil {
		return nil, err
	}
	if err := os.Setenv("COFFER_BIN", bin); err != nil {
		return nil, err
	}
	images, err := buildImages(tools)
	if err != nil {
		return nil, err
	}
	node, err := harness.Start(ctx, harness.Options{
		Snapshotter: "coffer", Mirror: &harness.Mirror{Handler: images, Registries: registries},
	})
	if err != nil {
		return nil, err
	}
	defer func() { retErr = errors.Join(retErr, node.KeepLogs(o.out), node.Close()) }()
	server, err := node.ServeAs(images, registries...)
	if err != nil {
		return nil, err
	}
	defer func() { retErr = errors.Join(retErr, server.Close()) }()
	if err := settle(bin, node, tools); err != nil {
		return nil, err
	}
	defer func() { retErr = errors.Join(retErr, removeAll(node)) }()
	return runTests(ctx, o, node, tests)
}

const shimName = "containerd-shim-coffer-v2"

// placeShim fills bin with the programs of the node, in which the suite's own shim takes the real one's place.
func placeShim(ctx context.Context, bin string, tools harness.Tools) error {
	for _, path := range []string{tools.Snapshotter, tools.Broker, tools.Ctl} {
		if err := os.Symlink(path, filepath.Join(bin, filepath.Base(path))); err != nil {
			return err
		}
	}
	_, err := output(ctx, ".", "go", "build", "-o", filepath.Join(bin, shimName), "github.com/coffer-project/coffer/integration/clientsuite/shim")
	return err
}

// settle tells the suite's shim what it has to know of the node.
func settle(bin string, node *harness.Node, tools harness.Tools) error {
	raw, err := os.ReadFile(filepath.Join(node.Dir, "cni", "10-coffer.conflist"))
	if err != nil {
		return err
	}
	var list struct {
		Plugins []map[string]any `json:"plugins"`
	}
	if err := json.Unmarshal(raw, &list); err != nil {
		return err
	}
	plugin := list.Plugins[0]
	plugin["cniVersion"], plugin["name"] = "1.0.0", "coffer"
	network, err := json.Marshal(plugin)
	if err != nil {
		return err
	}
	settings, err := json.Marshal(map[string]string{
		"Shim": tools.Shim, "Plugin": filepath.Join(tools.CNIPlugins, fmt.Sprint(plugin["type"])), "Network": string(network),
	})
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(bin, "settings.json"), settings, 0o600)
}

// removeAll removes the containers that failed tests have left, in all of containerd's namespaces.
func removeAll(node *harness.Node) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	namespaces, err := node.Ctr(ctx, "namespaces", "list", "-q")
	if err != nil {
		return err
	}
	var faults []error
	for namespace := range strings.FieldsSeq(namespaces) {
		containers, err := node.Ctr(ctx, "--namespace", namespace, "container", "list", "-q")
		faults = append(faults, err)
		for id := range strings.FieldsSeq(containers) {
			_, _ = node.Ctr(ctx, "--namespace", namespace, "task", "delete", "--force", id) // it may have none
			_, err := node.Ctr(ctx, "--namespace", namespace, "container", "delete", id)
			faults = append(faults, err)
		}
	}
	return errors.Join(faults...)
}

// buildImages makes the images that the tests name, except those named by a digest.
func buildImages(tools harness.Tools) (*registrytest.Registry, error) {
	base, err := harness.Busybox(tools.Busybox)
	if err != nil {
		return nil, err
	}
	more := []registrytest.Entry{
		{Name: "etc/passwd", Body: "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/bin/false\nsys:x:3:3:sys:/dev:/bin/false\nmail:x:8:8:mail:/var/spool/mail:/bin/false\n" +
			"www-data:x:33:33:www-data:/var/www:/bin/false\nnobody:x:65534:65534:nobody:/home:/bin/false\n"},
		{Name: "etc/group", Body: "root:x:0:\ndaemon:x:1:\nsys:x:3:\nmail:x:8:\nwww-data:x:33:\nnobody:x:65534:\n"},
	}
	// A program that is the first of its container hears only the signals that it asks for. The tests expect nc to end by
	// SIGTERM, which not every build of busybox asks for.
	more = append(more, registrytest.Entry{Name: "bin/nc", Mode: 0o755, Body: "#!/bin/sh\ntrap 'kill $!; exit 143' TERM\nbusybox nc \"$@\" &\nwait $!\n"})
	for _, applet := range []string{"top", "grep", "tail", "mkfifo", "chmod", "chown", "ping", "cut", "tr", "su", "whoami", "ipcs", "httpd", "sync", "rm", "mkdir", "tee", "od"} {
		more = append(more, registrytest.Entry{Name: "bin/" + applet, Type: tar.TypeSymlink, Link: "busybox"})
	}
	layers := []registrytest.Layer{base, registrytest.NewLayer(registrytest.Gzip, more...)}
	registry := registrytest.New()
	registry.Put("containerd/busybox", "1.36", multiPlatform(layers...))
	volume := registrytest.NewLayer(registrytest.Gzip,
		registrytest.Entry{Name: "test_dir/"}, registrytest.Entry{Name: "test_dir/test_file", Body: "test_content\n"})
	owned := registrytest.NewLayer(registrytest.Gzip,
		registrytest.Entry{Name: "foo/", UID: 2000, GID: 2000}, registrytest.Entry{Name: "foo/bar", UID: 2000, GID: 2000, Mode: 0o4755})
	registry.Put("containerd/volume-ownership", "2.1", multiPlatform(append(slices.Clip(layers), owned)...))
	registry.Put("containerd/volume-copy-up", "2.2", multiPlatform(append(slices.Clip(layers), volume)...))
	for name, tag := range map[string]string{"pause": "3.10.2", "pause-old": "3.6", "e2e-test-images/busybox": "1.29-2"} {
		layer := registrytest.NewLayer(registrytest.Gzip, registrytest.Entry{Name: "name", Body: name})
		registry.Put(strings.TrimSuffix(name, "-old"), tag, multiPlatform(layer))
	}
	return registry, nil
}

// multiPlatform makes one image of the same layers for each of some platforms.
func multiPlatform(layers ...registrytest.Layer) *registrytest.Image {
	images := map[string]*registrytest.Image{}
	for _, platform := range []string{"linux/amd64", "linux/arm64", "linux/ppc64le", "linux/s390x"} {
		_, architecture, _ := strings.Cut(platform, "/")
		own := layers
		if architecture != "amd64" {
			// Different content: tests look for platforms that were not fetched.
			own = append(slices.Clip(own), registrytest.NewLayer(registrytest.Gzip, registrytest.Entry{Name: architecture}))
		}
		images[platform] = registrytest.NewImage(own, func(c *ocispec.Image) {
			c.Architecture = architecture
			c.Config = ocispec.ImageConfig{Cmd: []string{"sh"}, Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}}
		}, nil)
	}
	return registrytest.NewIndex(images)
}
