// Package runc drives the runc program that stands beside the agent in the guest.
//
// It knows how to start processes, how to learn their pid and exit status without a race, and what runc's complaints mean. It
// keeps no state of containers: that is package container's.
package runc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/containerd/errdefs"
	gorunc "github.com/containerd/go-runc"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coffer-project/coffer/guestpull/container"
	"github.com/coffer-project/coffer/guestpull/container/reap"
)

// Driver runs containers with one runc program.
type Driver struct {
	binary string
	state  string // runc's own state and this driver's scratch files
	exits  *reap.Table
	serial atomic.Uint64
}

// New returns a driver. state is a folder that it may fill; exits must be fed by a running reaper.
func New(binary, state string, exits *reap.Table) (*Driver, error) {
	for _, dir := range []string{state, filepath.Join(state, "runc"), filepath.Join(state, "tmp")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("make runtime folder: %w", err)
		}
	}
	return &Driver{binary: binary, state: state, exits: exits}, nil
}

var _ container.Runtime = (*Driver)(nil)

// command returns a client whose complaints go to a file of its own, and a function that turns an error into one with runc's words.
func (d *Driver) command() (*gorunc.Runc, func(error) error) {
	logFile := d.scratch("log")
	client := &gorunc.Runc{Command: d.binary, Root: filepath.Join(d.state, "runc"), Log: logFile, LogFormat: gorunc.JSON}
	return client, func(err error) error {
		defer os.Remove(logFile)
		return explain(err, logFile)
	}
}

// scratch returns a short path for a file that lives as long as one call. Sockets must fit 108 bytes.
func (d *Driver) scratch(kind string) string {
	return filepath.Join(d.state, "tmp", kind+strconv.FormatUint(d.serial.Add(1), 36))
}

// Create makes the container of a bundle; its first process waits for Start.
func (d *Driver) Create(ctx context.Context, id, bundle string, stdio container.Stdio) (container.Process, error) {
	client, explain := d.command()
	return d.launch(ctx, stdio, explain, func(pidFile string, console gorunc.ConsoleSocket, io gorunc.IO) error {
		return client.Create(ctx, id, bundle, &gorunc.CreateOpts{IO: io, PidFile: pidFile, ConsoleSocket: console})
	})
}

// Exec starts a further process in a running container.
func (d *Driver) Exec(ctx context.Context, id string, process *specs.Process, stdio container.Stdio) (container.Process, error) {
	client, explain := d.command()
	return d.launch(ctx, stdio, explain, func(pidFile string, console gorunc.ConsoleSocket, io gorunc.IO) error {
		return client.Exec(ctx, id, *process, &gorunc.ExecOpts{IO: io, PidFile: pidFile, ConsoleSocket: console, Detach: true})
	})
}

// launch runs one runc command that leaves a process behind.
func (d *Driver) launch(ctx context.Context, stdio container.Stdio, explain func(error) error,
	run func(pidFile string, console gorunc.ConsoleSocket, io gorunc.IO) error) (_ container.Process, retErr error) {
	flight := d.exits.Begin()
	defer flight.End()
	pidFile := d.scratch("pid")
	defer os.Remove(pidFile)
	var (
		socket  *consoleSocket
		console gorunc.ConsoleSocket
		io      gorunc.IO = childIO{stdio.Child}
		err     error
	)
	if stdio.Terminal {
		if socket, err = listenConsole(d.scratch("tty")); err != nil {
			return container.Process{}, err
		}
		defer socket.Close()
		console, io = socket, nil
	}
	if err := explain(run(pidFile, console, io)); err != nil {
		return container.Process{}, err
	}
	var out container.Process
	if socket != nil {
		if out.Console, err = socket.receive(ctx); err != nil {
			return container.Process{}, err
		}
		defer func() {
			if retErr != nil {
				_ = out.Console.Close()
			}
		}()
	}
	if out.PID, err = gorunc.ReadPidFile(pidFile); err != nil {
		return container.Process{}, fmt.Errorf("read pid of the new process: %w", err)
	}
	out.Exit = flight.Claim(out.PID)
	return out, nil
}

// Start lets the first process of a created container run its program.
func (d *Driver) Start(ctx context.Context, id string) error {
	client, explain := d.command()
	return explain(client.Start(ctx, id))
}

// Kill signals the first process of the container; SIGKILL reaches all its processes.
func (d *Driver) Kill(ctx context.Context, id string, signal int) error {
	client, explain := d.command()
	return explain(client.Kill(ctx, id, signal, nil))
}

// Delete kills and removes the container, in any state. A container that is gone is no error.
func (d *Driver) Delete(ctx context.Context, id string) error {
	client, explain := d.command()
	return explain(client.Delete(ctx, id, &gorunc.DeleteOpts{Force: true}))
}

// Freeze stops all processes of the container, or lets them go on.
func (d *Driver) Freeze(ctx context.Context, id string, frozen bool) error {
	client, explain := d.command()
	if frozen {
		return explain(client.Pause(ctx, id))
	}
	return explain(client.Resume(ctx, id))
}

// Update changes limits of the container.
func (d *Driver) Update(ctx context.Context, id string, resources *specs.LinuxResources) error {
	client, explain := d.command()
	return explain(client.Update(ctx, id, resources))
}

// classes tells what runc's words mean for the caller.
var classes = []struct {
	words string
	class error
}{
	{"executable file not found", errdefs.ErrNotFound},
	{"no such file or directory", errdefs.ErrNotFound},
	{"does not exist", errdefs.ErrNotFound},
	{"process already finished", errdefs.ErrNotFound},
	{"container not running", errdefs.ErrNotFound},
	{"permission denied", errdefs.ErrPermissionDenied},
	{"is a directory", errdefs.ErrInvalidArgument},
}

// explain replaces the exit status of runc by what it wrote in its log.
func explain(err error, logFile string) error {
	if err == nil {
		return nil
	}
	message := lastError(logFile)
	if message == "" {
		return fmt.Errorf("run runc: %w", err)
	}
	for _, c := range classes {
		if strings.Contains(message, c.words) {
			return fmt.Errorf("runc: %s: %w", message, c.class)
		}
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("runc: %s: %w", message, err)
	}
	return fmt.Errorf("runc: %s", message)
}
