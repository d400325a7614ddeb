package container

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coffer-project/coffer/guestpull/container/mount"
	"github.com/coffer-project/coffer/guestpull/container/spec"
	"github.com/coffer-project/coffer/proto/agentpolicy"
	"github.com/coffer-project/coffer/proto/sealed"
)

// maxSecrets bounds the sealed variables of one process.
const maxSecrets = 64

// Secrets opens sealed secrets; package secret's Unsealer is one.
type Secrets interface {
	// Unseal returns the secret, or an error that holds no part of one.
	Unseal(ctx context.Context, text string) ([]byte, error)
}

// Files are the files that the host has copied into the guest; package files' Receiver has them.
type Files interface {
	// Sealed returns what stands in the sealed files at a path of the guest and below it, by their paths from there.
	Sealed(path string) (map[string]string, error)
	// Open puts secrets in the places of those, and of all that come there later. It returns how many it found.
	Open(ctx context.Context, path string, open func(ctx context.Context, text string) ([]byte, error)) (int, error)
}

// unseal puts secrets in the places of the sealed variables of the container's first process. It comes after the policy, which judges the
// sealed text and never sees a secret. A container without one of its secrets must not run: programs take a missing password for none.
func (m *Manager) unseal(ctx context.Context, c *Container, process *specs.Process) error {
	begin := time.Now()
	secrets := map[string]string{}
	err := replaceSealed(process.Env, func(text string) (string, error) {
		if len(secrets) >= maxSecrets {
			return "", fmt.Errorf("more than %d sealed secrets: %w", maxSecrets, errdefs.ErrInvalidArgument)
		}
		value, err := m.Secrets.Unseal(ctx, text)
		if err != nil {
			return "", err
		}
		if !utf8.Valid(value) || strings.ContainsRune(string(value), 0) {
			return "", fmt.Errorf("the secret is not text: a variable holds UTF-8 without zero bytes: %w", errdefs.ErrInvalidArgument)
		}
		secrets[text] = string(value)
		return secrets[text], nil
	})
	if err == nil && len(secrets) > 0 {
		err = spec.CheckProcess(process)
	}
	if err != nil {
		return fmt.Errorf("container %s: %w", c.id, err)
	}
	if len(secrets) == 0 {
		return nil
	}
	c.mu.Lock()
	c.secrets = secrets
	c.mu.Unlock()
	log.G(ctx).WithFields(log.Fields{"container": c.id, "secrets": len(secrets), "t_unseal": time.Since(begin)}).Info("sealed secrets opened")
	return nil
}

// sealedMount is a mount in which the host has put sealed files.
type sealedMount struct {
	destination, source string
	files               map[string]string // sealed texts, by paths in the mount
}

// findSealed finds the sealed files among those that the container is to have. Their content is the host's, and sealed.
func (m *Manager) findSealed(c *Container, p *plan) ([]sealedMount, error) {
	var out []sealedMount
	for _, mnt := range p.spec.Mounts {
		if mnt.Type != spec.Bind || !mount.Below(m.sharedDir(), mnt.Source) || p.termDest != "" && mnt.Destination == p.termDest {
			continue
		}
		found, err := m.Files.Sealed(mnt.Source)
		if err != nil {
			return nil, fmt.Errorf("container %s: mount at %s: %w", c.id, mnt.Destination, err)
		}
		if len(found) > 0 {
			out = append(out, sealedMount{destination: mnt.Destination, source: mnt.Source, files: found})
		}
	}
	return out, nil
}

// openFiles puts secrets in the places of the sealed files of mounts that the policy has allowed, before the container sees them. What
// updates such a mount later is opened when it comes, as often as it comes. A mount without sealed files stays without: nobody was asked
// whether its readers may have secrets.
func (m *Manager) openFiles(ctx context.Context, c *Container, mounts []sealedMount) error {
	begin, count := time.Now(), 0
	for _, mnt := range mounts {
		opened, err := m.Files.Open(ctx, mnt.source, m.Secrets.Unseal)
		if err != nil {
			return fmt.Errorf("container %s: mount at %s: %w", c.id, mnt.destination, err)
		}
		count += opened
	}
	if count > 0 {
		log.G(ctx).WithFields(log.Fields{"container": c.id, "files": count, "t_unseal": time.Since(begin)}).Info("sealed files opened")
	}
	return nil
}

// sealedFacts is what a policy is told of sealed files. One that cannot be read fails when it is opened.
func sealedFacts(mounts []sealedMount) []agentpolicy.SealedFile {
	var out []agentpolicy.SealedFile
	for _, mnt := range mounts {
		for _, name := range slices.Sorted(maps.Keys(mnt.files)) {
			fact := agentpolicy.SealedFile{MountPoint: mnt.destination, Path: name}
			if s, err := sealed.Parse(mnt.files[name]); err == nil {
				fact.Signer = s.KeyID
				if s.Vault != nil {
					fact.Secret = s.Vault.Name
				}
			}
			out = append(out, fact)
		}
	}
	return out
}

// unsealExec gives a further process the secrets that the container's first one has. Nothing is fetched for it: what the container was
// not given, an exec does not get either.
func (c *Container) unsealExec(process *specs.Process) error {
	c.mu.Lock()
	secrets := c.secrets
	c.mu.Unlock()
	err := replaceSealed(process.Env, func(text string) (string, error) {
		value, ok := secrets[text]
		if !ok {
			return "", fmt.Errorf("the container was not given this sealed secret: %w", errdefs.ErrPermissionDenied)
		}
		return value, nil
	})
	if err != nil {
		return err
	}
	return spec.CheckProcess(process)
}

// replaceSealed changes the values of sealed variables. Its errors name the variable.
func replaceSealed(env []string, open func(text string) (string, error)) error {
	for i, entry := range env {
		name, text, _ := strings.Cut(entry, "=")
		if !sealed.Is(text) {
			continue
		}
		value, err := open(text)
		if err != nil {
			return fmt.Errorf("variable %.64q: %w", name, err)
		}
		if len(name)+1+len(value) >= sealed.MaxText {
			return fmt.Errorf("variable %.64q: the secret has %d bytes, more than a variable can hold: %w", name, len(value), errdefs.ErrInvalidArgument)
		}
		env[i] = name + "=" + value
	}
	return nil
}
