package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// tool is something that pulls encrypted images.
type tool interface {
	// prepare looks whether the tool is installed, and what it is: its versions.
	prepare() (versions string, err error)
	// pull gets an image into an empty file system.
	pull(ctx context.Context, img *image, target string) (usage, error)
}

// place is what all tools are told.
type place struct {
	scratch     string // of the benchmark; not measured
	registry    *registry
	keyProvider *keyProvider
}

// coffer is the program that all this is about.
type coffer struct {
	*place
	binary string
	prefix []string // what runs the program, if not the benchmark itself
}

func (c *coffer) prepare() (string, error) {
	if _, err := os.Stat(c.binary); err != nil {
		return "", fmt.Errorf("%w: run make build", err)
	}
	return "coffer-pull", os.WriteFile(c.keyFile(), kek[:], 0o600)
}

func (c *coffer) keyFile() string { return filepath.Join(c.scratch, "kek") }

func (c *coffer) pull(ctx context.Context, img *image, target string) (usage, error) {
	u, out, err := runAll(ctx, target, command{args: append(slices.Clone(c.prefix),
		c.binary, "--plain-http", c.registry.host, "--key-file", c.keyFile(), "--json", c.registry.ref(img), filepath.Join(target, "store"),
	)})
	if err != nil {
		return u, err
	}
	var pulled struct {
		Phases []struct {
			Name   string  `json:"name"`
			Micros float64 `json:"micros"`
		} `json:"phases"`
	}
	if err := json.Unmarshal(out, &pulled); err != nil {
		return u, fmt.Errorf("read the report of coffer-pull: %w", err)
	}
	u.Phases = map[string]float64{}
	for _, p := range pulled.Phases {
		u.Phases[p.Name] = p.Micros / 1e6
	}
	return u, nil
}

// skopeo copies to a layout, umoci unpacks it.
type skopeo struct{ *place }

func (s *skopeo) prepare() (string, error) {
	return versions("apt-get install skopeo umoci", "skopeo", "umoci")
}

func (s *skopeo) pull(ctx context.Context, img *image, target string) (usage, error) {
	layout := filepath.Join(target, "layout")
	u, _, err := runAll(ctx, target,
		command{env: []string{"TMPDIR=" + target}, args: []string{
			"skopeo", "--insecure-policy", "copy", "--src-tls-verify=false", "--decryption-key", img.privateKey(), "docker://" + s.registry.ref(img), "oci:" + layout + ":" + tag,
		}},
		command{args: []string{"umoci", "raw", "unpack", "--image", layout + ":" + tag, filepath.Join(target, "rootfs")}})
	return u, err
}

// buildah pulls into a store of its own with the overlay driver.
type buildah struct{ *place }

func (b *buildah) prepare() (string, error) {
	v, err := versions("apt-get install buildah", "buildah")
	if err != nil {
		return "", err
	}
	return v, os.WriteFile(b.policy(), []byte(`{"default":[{"type":"insecureAcceptAnything"}]}`), 0o600)
}

func (b *buildah) policy() string { return filepath.Join(b.scratch, "policy.json") }

func (b *buildah) pull(ctx context.Context, img *image, target string) (usage, error) {
	u, _, err := runAll(ctx, target, command{
		env: []string{"TMPDIR=" + target},
		args: []string{
			"buildah", "--root", filepath.Join(target, "root"), "--runroot", filepath.Join(target, "run"), "--storage-driver", "overlay",
			"pull", "--quiet", "--signature-policy", b.policy(), "--tls-verify=false", "--decryption-key", img.privateKey(), "docker://" + b.registry.ref(img),
		},
	})
	// The driver binds its folder to itself, and what is bound cannot be unmounted.
	_ = unix.Unmount(filepath.Join(target, "root", "overlay"), unix.MNT_DETACH) // not every version does
	return u, err
}

// versions asks programs who they are; the cure is for when one is missing.
func versions(cure string, programs ...string) (string, error) {
	var list []string
	for _, name := range programs {
		path, err := exec.LookPath(name)
		if err != nil {
			return "", fmt.Errorf("%s is not installed: %s", name, cure)
		}
		out, err := exec.Command(path, "--version").Output()
		if err != nil {
			return "", fmt.Errorf("ask %s for its version: %w", name, err)
		}
		line, _, _ := strings.Cut(string(out), "\n")
		list = append(list, line)
	}
	return strings.Join(list, ", "), nil
}
