package container

import (
	"context"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coffer-project/coffer/guestpull/container/spec"
	"github.com/coffer-project/coffer/proto/sealed"
)

// maxSecrets bounds the sealed variables of one process.
const maxSecrets = 64

// Secrets opens sealed secrets; package secret's Unsealer is one.
type Secrets interface {
	// Unseal returns the secret, or an error that holds no part of one.
	Unseal(ctx context.Context, text string) ([]byte, error)
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
