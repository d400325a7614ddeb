package bundle

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// maxConfig bounds config.json, in bytes; containerd's own message limit is 16 MiB.
const maxConfig = 16 << 20

// Annotations of the container runtimes of Kubernetes.
const (
	annotationType      = "io.kubernetes.cri.container-type"
	annotationTypeCRIO  = "io.kubernetes.cri-o.ContainerType"
	annotationSandbox   = "io.kubernetes.cri.sandbox-id"
	annotationImage     = "io.kubernetes.cri.image-name"
	annotationImageCRIO = "io.kubernetes.cri-o.ImageName"
)

// Bundle is a parsed OCI bundle. It does not change after Load.
type Bundle struct {
	path string
	spec *specs.Spec
}

// Load reads the bundle in the folder path. A config.json that is no complete specification of a Linux container fails
// with errdefs.ErrInvalidArgument.
func Load(ctx context.Context, path string) (*Bundle, error) {
	file, err := os.Open(filepath.Join(path, "config.json"))
	if err != nil {
		return nil, fmt.Errorf("open bundle: %w", err)
	}
	defer file.Close()
	raw, err := io.ReadAll(io.LimitReader(file, maxConfig+1))
	if err != nil {
		return nil, fmt.Errorf("read bundle %s: %w", path, err)
	}
	if len(raw) > maxConfig {
		return nil, fmt.Errorf("config.json of bundle %s exceeds %d bytes: %w", path, maxConfig, errdefs.ErrInvalidArgument)
	}
	b, err := parse(ctx, raw)
	if err != nil {
		return nil, fmt.Errorf("parse config.json of bundle %s: %w", path, err)
	}
	b.path = path
	return b, nil
}

func parse(ctx context.Context, raw []byte) (*Bundle, error) {
	var spec specs.Spec
	if err := json.Unmarshal(raw, &spec); err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	// A newer containerd may know fields that this program does not. They are dropped like all that is not on the
	// allow-list, and the warning names the first of them.
	strict := json.NewDecoder(bytes.NewReader(raw))
	strict.DisallowUnknownFields()
	if err := strict.Decode(new(specs.Spec)); err != nil {
		log.G(ctx).WithError(err).Warn("container specification has fields unknown to this shim, dropped")
	}
	missing := ""
	switch {
	case spec.Process == nil:
		missing = "process"
	case spec.Root == nil:
		missing = "root"
	case spec.Linux == nil:
		missing = "linux"
	}
	if missing != "" {
		return nil, fmt.Errorf("specification has no %s part: %w", missing, errdefs.ErrInvalidArgument)
	}
	return &Bundle{spec: &spec}, nil
}

// Path is the bundle's folder.
func (b *Bundle) Path() string { return b.path }

// Terminal tells whether the container's first process gets a terminal.
func (b *Bundle) Terminal() bool { return b.spec.Process.Terminal }

// User is who the container's first process is to run as, as far as containerd knows.
func (b *Bundle) User() specs.User { return b.spec.Process.User }

// IsSandbox tells whether the container is a pod's sandbox (pause) container, which the VM itself replaces.
func (b *Bundle) IsSandbox() bool {
	return b.spec.Annotations[annotationType] == "sandbox" || b.spec.Annotations[annotationTypeCRIO] == "sandbox"
}

// SandboxID is the id of the pod that the container belongs to; empty outside Kubernetes.
func (b *Bundle) SandboxID() string { return b.spec.Annotations[annotationSandbox] }

// Hooks are the specification's; nil when it has none. The caller must not change them.
func (b *Bundle) Hooks() *specs.Hooks { return b.spec.Hooks }

// NamesImage tells whether an annotation says which image the container is of.
func (b *Bundle) NamesImage() bool {
	return b.spec.Annotations[annotationImage] != "" || b.spec.Annotations[annotationImageCRIO] != ""
}

// Annotations returns the specification's annotations; the caller must not change them.
func (b *Bundle) Annotations() map[string]string { return b.spec.Annotations }

// NetNS is the path of the network namespace that containerd made for the pod; empty when it made none.
func (b *Bundle) NetNS() string { return b.namespace(specs.NetworkNamespace) }

// HostNetwork tells whether the container asks for no network namespace of its own, which means the host's.
func (b *Bundle) HostNetwork() bool {
	return !slices.ContainsFunc(b.spec.Linux.Namespaces, func(ns specs.LinuxNamespace) bool {
		return ns.Type == specs.NetworkNamespace
	})
}

// SharesPID tells whether the container joins a process namespace that exists already, its pod's.
func (b *Bundle) SharesPID() bool { return b.namespace(specs.PIDNamespace) != "" }

// MapsUsers tells whether the container gets a user namespace.
func (b *Bundle) MapsUsers() bool {
	return len(b.spec.Linux.UIDMappings)+len(b.spec.Linux.GIDMappings) > 0
}

func (b *Bundle) namespace(kind specs.LinuxNamespaceType) string {
	for _, ns := range b.spec.Linux.Namespaces {
		if ns.Type == kind {
			return ns.Path
		}
	}
	return ""
}

// dropped collects the names of fields that are not passed on.
type dropped []string

// note records a field when it was set.
func (d *dropped) note(field string, set bool) {
	if set {
		*d = append(*d, field)
	}
}

// warn logs what was collected, once.
func (d dropped) warn(ctx context.Context) {
	if len(d) > 0 {
		slices.Sort(d) // the order of maps means nothing
		log.G(ctx).WithField("fields", strings.Join(d, " ")).Warn("parts of the container specification have no place in a guest, dropped")
	}
}
