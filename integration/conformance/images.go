package main

import (
	"archive/tar"
	"context"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coffer-project/coffer/integration/registrytest"
)

// registries are the hosts that the suite's references name. Their images are told apart by repository alone: the only
// repository that two of them have, pause, is meant to hold the same image in both.
var registries = []string{"registry.k8s.io", "k8s.gcr.io", "gcr.io"}

const (
	e2e     = "e2e-test-images/"
	staging = "k8s-staging-cri-tools/"
)

// image is one image that the suite pulls.
type image struct {
	repository string
	tags       []string
	layers     []registrytest.Layer
	config     ocispec.ImageConfig
}

// buildImages makes every image that critest 1.36 names and fills a registry with them. One is missing: test-image-digest
// is named by a digest, which nobody but its author can make.
func buildImages(ctx context.Context) (*registrytest.Registry, error) {
	base, err := busyboxLayer(ctx)
	if err != nil {
		return nil, err
	}
	program, err := buildProgram(ctx)
	if err != nil {
		return nil, err
	}
	registry := registrytest.New()
	for _, i := range suiteImages(base, program) {
		config := i.config
		config.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
		built := registrytest.NewImage(i.layers, func(c *ocispec.Image) { c.Config = config }, nil)
		for _, tag := range i.tags {
			registry.Put(i.repository, tag, built)
		}
	}
	return registry, nil
}

func suiteImages(base registrytest.Layer, program []byte) []image {
	shell := ocispec.ImageConfig{Cmd: []string{"sh"}}
	server := func(name string) registrytest.Layer {
		return registrytest.NewLayer(registrytest.Gzip,
			registrytest.Entry{Name: "usr/"}, registrytest.Entry{Name: "usr/sbin/"},
			registrytest.Entry{Name: "usr/sbin/" + name, Body: string(program), Mode: 0o755})
	}
	nginx := []registrytest.Layer{base, server("nginx")}
	// Like the real one it shares nothing with other images.
	pause := []registrytest.Layer{registrytest.NewLayer(registrytest.Gzip, registrytest.Entry{Name: "pause", Body: string(program), Mode: 0o755})}
	images := []image{
		{e2e + "busybox", []string{"1.29-2"}, []registrytest.Layer{base}, shell},
		// The suite looks for "master process" on the command line; nginx itself writes it there.
		{e2e + "nginx", []string{"1.14-2"}, nginx, ocispec.ImageConfig{Cmd: []string{"nginx", "80", "master process"}}},
		{staging + "hostnet-nginx-amd64", []string{"latest"}, nginx, ocispec.ImageConfig{Cmd: []string{"nginx", "12003", "master process"}}},
		{e2e + "httpd", []string{"2.4.39-4"}, []registrytest.Layer{base, server("httpd")}, ocispec.ImageConfig{Cmd: []string{"httpd"}}},
		{e2e + "nonewprivs", []string{"1.3"}, []registrytest.Layer{base, registrytest.NewLayer(registrytest.Gzip,
			registrytest.Entry{Name: "nonewprivs", Body: string(program), Mode: 0o4755})},
			ocispec.ImageConfig{Cmd: []string{"/nonewprivs"}}},
		{"pause", []string{"3.9"}, pause, ocispec.ImageConfig{Entrypoint: []string{"/pause"}}},
		{staging + "test-image-predefined-group", []string{"latest"}, []registrytest.Layer{base, registrytest.NewLayer(registrytest.Gzip,
			registrytest.Entry{Name: "etc/passwd", Body: users + "default-user:x:1000:1000::/home/default-user:/bin/sh\n"},
			registrytest.Entry{Name: "etc/group", Body: groups + "default-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n"})},
			ocispec.ImageConfig{User: "1000", Cmd: []string{"sh"}}},
	}
	for suffix, user := range map[string]string{
		"uid": "1002", "username": "www-data", "uid-group": "1003:users", "username-group": "www-data:www-data",
	} {
		images = append(images, image{staging + "test-image-user-" + suffix, []string{"latest"}, []registrytest.Layer{base, marker(suffix)},
			ocispec.ImageConfig{User: user, Cmd: []string{"sh"}}})
	}
	// These run, if at all, with their own command, and are removed without being stopped: it must end at once.
	for repository, tags := range map[string][]string{
		"test-image-latest": {"latest"}, "test-image-1": {"latest"}, "test-image-2": {"latest"}, "test-image-3": {"latest"},
		"test-image-tags": {"1", "2", "3"},
	} {
		images = append(images, image{staging + repository, tags, []registrytest.Layer{base, marker(repository)}, shell})
	}
	for _, tag := range []string{"test", "all"} {
		images = append(images, image{staging + "test-image-tag", []string{tag}, []registrytest.Layer{base, marker("tag-" + tag)}, shell})
	}
	return images
}

// marker makes an image different from all others.
func marker(name string) registrytest.Layer {
	return registrytest.NewLayer(registrytest.Gzip, registrytest.Entry{Name: "marker-" + name, Body: name + "\n"})
}

const (
	users  = "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/var/www:/bin/false\nnobody:x:65534:65534:nobody:/:/bin/false\n"
	groups = "root:x:0:\nwww-data:x:33:\nusers:x:100:\nnogroup:x:65534:\n"
)

// pgrep and ipcs are asked for and are not in Debian's busybox.
const (
	pgrep = "#!/bin/sh\nset -- $(pidof \"$1\") && [ $# -gt 0 ] && printf '%s\\n' \"$@\"\n"
	ipcs  = "#!/bin/sh\n# ipcs -m\ncat /proc/sysvipc/shm\n"
)

// baseEntries are the root file system of the images, with busybox and its libraries by their paths.
func baseEntries(busybox []byte, applets []string, libraries map[string][]byte) []registrytest.Entry {
	entries := []registrytest.Entry{
		{Name: "bin/"}, {Name: "dev/"}, {Name: "etc/"}, {Name: "lib/"}, {Name: "proc/"}, {Name: "root/", Mode: 0o700}, {Name: "sys/"},
		{Name: "tmp/", Mode: 0o1777}, {Name: "usr/"}, {Name: "usr/bin/"}, {Name: "var/"}, {Name: "var/run/"},
		{Name: "etc/passwd", Body: users}, {Name: "etc/group", Body: groups},
		{Name: "bin/busybox", Body: string(busybox), Mode: 0o755},
		{Name: "usr/bin/pgrep", Body: pgrep, Mode: 0o755}, {Name: "usr/bin/ipcs", Body: ipcs, Mode: 0o755},
	}
	// Hard links: a mask over one symbolic link would hide busybox itself, and with it every other applet.
	for _, name := range applets {
		entries = append(entries, registrytest.Entry{Name: "bin/" + name, Type: tar.TypeLink, Link: "bin/busybox", Mode: 0o755})
	}
	return append(entries, libraryEntries(libraries)...)
}
