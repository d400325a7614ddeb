package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coffer-project/coffer/proto/initdata"
	"github.com/coffer-project/coffer/shim/config"
	"github.com/coffer-project/coffer/shim/plugin/driver"
	"github.com/coffer-project/coffer/shim/sandbox"
	"github.com/coffer-project/coffer/shim/tee"
	"github.com/coffer-project/coffer/shim/vm"
	"github.com/coffer-project/coffer/shim/vm/qemu"
)

// document is the guests' initdata. They run nothing, so it says nothing.
const document = "version = \"0.1.0\"\nalgorithm = \"sha384\"\n\n[data]\n\"coffer.toml\" = '''\n[policy]\ndefault = \"development\"\n'''\n"

// said is what a guest tells of itself once it has read its document, by the names of its log's fields.
type said map[string]string

// booted is a guest that came up.
type booted struct {
	said
	ready       time.Duration // from the shim's start of it to the agent's answer
	gpus        string        // its word on the GPUs that were passed through to it
	description qemu.Description
}

// keeper is a driver that keeps the instance that it makes.
type keeper struct {
	*qemu.Driver
	instance    vm.Instance
	description qemu.Description
}

func (k *keeper) New(ctx context.Context, config vm.Config) (vm.Instance, error) {
	k.description = k.Describe(config)
	instance, err := k.Driver.New(ctx, config)
	k.instance = instance
	return instance, err
}

// boot takes a pod without a network through the shim, with the devices that VFIO's nodes stand for, and returns what its guest says.
func boot(ctx context.Context, text string, nodes ...string) (_ *booted, retErr error) {
	dir, err := os.MkdirTemp("/tmp", "coffer-hw") // short: sockets are below it
	if err != nil {
		return nil, err
	}
	defer func() { retErr = errors.Join(retErr, os.RemoveAll(dir)) }()
	path := filepath.Join(dir, "shim.toml")
	text = strings.Replace(text, "\n", fmt.Sprintf("\nstate_dir = %q\n", dir+"/s"), 1)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		return nil, err
	}
	annotation, err := initdata.EncodeAnnotation([]byte(document))
	if err != nil {
		return nil, err
	}
	var kept keeper
	pod := sandbox.New(ctx, sandbox.Platform{
		LoadConfig: config.Load,
		NewDriver: func(c *config.Config) (vm.Driver, error) {
			kept.Driver, err = driver.New(c)
			return &kept, err
		},
		HostDNS: func() (*cri.DNSConfig, error) { return new(cri.DNSConfig), nil },
		TEE:     tee.Machine{},
	})
	request := sandbox.Request{
		ID: "hardware-check", Bundle: dir, ConfigPath: path, DeviceNodes: nodes,
		Config: &cri.PodSandboxConfig{Annotations: map[string]string{initdata.Annotation: annotation}},
	}
	if err := pod.Create(ctx, request); err != nil {
		return nil, err
	}
	begin := time.Now()
	if err := pod.Start(ctx); err != nil {
		return nil, err
	}
	ready := time.Since(begin)
	defer func() { retErr = errors.Join(retErr, pod.Stop(context.WithoutCancel(ctx))) }()
	b := &booted{ready: ready, description: kept.description}
	line, err := listen(ctx, documentLimit, kept.instance, documentRead)
	b.said = fields(line)
	if err == nil && len(nodes) > 0 {
		b.gpus, err = listen(ctx, gpuLimit, kept.instance, gpusUp, gpusDown)
	}
	return b, err
}

// What guests log.
const (
	documentRead = "measured document read"
	gpusUp       = "GPUs are set up"
	gpusDown     = "GPUs cannot be used"
)

// Limits of the waits for a guest's word: reports of a TEE take a moment, the fabric of a whole board minutes.
const (
	documentLimit = time.Minute
	gpuLimit      = 10 * time.Minute
)

// listen waits on the console for a line with one of the words.
func listen(ctx context.Context, limit time.Duration, instance vm.Instance, words ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for next := uint64(0); ; {
		var lines []string
		var err error
		if lines, next, err = instance.ConsoleFrom(ctx, next); err != nil {
			return "", fmt.Errorf("wait for the guest to log %q: %w; its last words: %s", words, err, strings.Join(instance.Console(), " | "))
		}
		for _, line := range lines {
			if slices.ContainsFunc(words, func(word string) bool { return strings.Contains(line, word) }) {
				return line, nil
			}
		}
	}
}

// fields takes a line of the log apart.
func fields(line string) said {
	words := said{}
	for field := range strings.FieldsSeq(line) {
		if name, value, ok := strings.Cut(field, "="); ok {
			words[name] = value
		}
	}
	return words
}
