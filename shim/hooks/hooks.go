// Package hooks runs the hooks of an OCI specification that belong to the runtime's side of a container: clients without
// sandboxes, nerdctl among them, set up and take down a container's network by them. Hooks that are to run inside the
// container have no place on the host and are not run here.
package hooks

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

const (
	// defaultTimeout bounds a hook that names no time-out of its own.
	defaultTimeout = 30 * time.Second
	// maxQuoted is how many bytes of a failed hook's output its error quotes.
	maxQuoted = 1024
)

// Create runs what a specification wants before its container is created, in the specification's order. state.Pid is a
// process or thread in the container's network namespace. The first failure ends it.
func Create(ctx context.Context, hooks *specs.Hooks, state specs.State) error {
	if hooks == nil {
		return nil
	}
	//nolint:staticcheck // deprecated by the specification, and in use
	for kind, list := range [][]specs.Hook{hooks.Prestart, hooks.CreateRuntime} {
		for _, hook := range list {
			if err := run(ctx, hook, state); err != nil {
				return fmt.Errorf("%s hook: %w", [...]string{"prestart", "createRuntime"}[kind], err)
			}
		}
	}
	return nil
}

// Poststop runs what a specification wants after its container has ended: all of it, even when some fails.
func Poststop(ctx context.Context, hooks *specs.Hooks, state specs.State) error {
	if hooks == nil {
		return nil
	}
	var faults []error
	for _, hook := range hooks.Poststop {
		if err := run(ctx, hook, state); err != nil {
			faults = append(faults, fmt.Errorf("poststop hook: %w", err))
		}
	}
	return errors.Join(faults...)
}

// run runs one hook with the state on its standard input.
func run(ctx context.Context, hook specs.Hook, state specs.State) error {
	if !filepath.IsAbs(hook.Path) {
		return fmt.Errorf("path %q is not absolute: %w", hook.Path, errdefs.ErrInvalidArgument)
	}
	timeout := defaultTimeout
	if hook.Timeout != nil {
		if *hook.Timeout <= 0 {
			return fmt.Errorf("time-out of %s is %d s: %w", hook.Path, *hook.Timeout, errdefs.ErrInvalidArgument)
		}
		timeout = time.Duration(*hook.Timeout) * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	input, err := json.Marshal(state)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, hook.Path)
	cmd.WaitDelay = time.Second // a child of the hook may hold its output open
	if len(hook.Args) > 0 {
		cmd.Args = hook.Args
	}
	cmd.Env = hook.Env
	if cmd.Env == nil {
		cmd.Env = []string{} // not the shim's own
	}
	cmd.Dir = state.Bundle
	cmd.Stdin = bytes.NewReader(input)
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("%w: %w", ctx.Err(), err)
		}
		text := strings.TrimSpace(output.String())
		return fmt.Errorf("run %s: %w: %s", hook.Path, err, text[max(0, len(text)-maxQuoted):])
	}
	return nil
}
