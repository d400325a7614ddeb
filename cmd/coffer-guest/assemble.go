package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/coffer-project/coffer/guestpull/attest"
	"github.com/coffer-project/coffer/guestpull/container"
	"github.com/coffer-project/coffer/guestpull/container/cgroup"
	"github.com/coffer-project/coffer/guestpull/container/reap"
	"github.com/coffer-project/coffer/guestpull/container/runc"
	"github.com/coffer-project/coffer/guestpull/container/spec"
	"github.com/coffer-project/coffer/guestpull/disk"
	"github.com/coffer-project/coffer/guestpull/files"
	"github.com/coffer-project/coffer/guestpull/gpu"
	"github.com/coffer-project/coffer/guestpull/image"
	"github.com/coffer-project/coffer/guestpull/network"
	"github.com/coffer-project/coffer/guestpull/policy"
	"github.com/coffer-project/coffer/guestpull/sandbox"
	"github.com/coffer-project/coffer/guestpull/sandbox/holder"
	"github.com/coffer-project/coffer/guestpull/scratch"
	"github.com/coffer-project/coffer/guestpull/server"
)

// version is set when a release is built.
var version = "0.1.0"

// settings are what differs between the guest and a development machine.
type settings struct {
	base, state, runc, resolvConf string

	init           bool
	proxy, noProxy string
	pipeSize       int           // bytes; 0: the kernel's default
	hotplug        time.Duration // how long a disk that the host has plugged in may take to appear
	initdata       []byte        // nil: there is no measured document
	platform       attest.Platform
	policy         policy.Engine
	secrets        *lateSecrets
	gpus           *gpu.Service
	cgroups        cgroup.Root
	scratch        string                      // where the scratch disk is mounted; empty: nowhere
	place          *scratch.Place              // the same for those who must wait for it
	complete       func(context.Context) error // waits until the machine is fit for containers
	phases         func() []server.Phase
	pulls          *image.Tracker
	pullLimit      time.Duration // of one image
}

// assemble plugs the parts together.
func assemble(s settings, images container.Images) (*server.Server, error) {
	exits := reap.New()
	driver, err := runc.New(s.runc, s.state, exits)
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find own program: %w", err)
	}
	hold := func(newPID bool) container.Holder {
		return func() (container.Process, error) {
			cmd, err := holder.Command(self, newPID)
			if err != nil {
				return container.Process{}, err
			}
			return holder.Start(exits, cmd)
		}
	}
	holdUsers := func(users spec.Users) (container.Process, error) {
		cmd, err := holder.UserCommand(self, users)
		if err != nil {
			return container.Process{}, err
		}
		return holder.Start(exits, cmd)
	}
	pod, err := sandbox.New(sandbox.Options{
		Base: s.base, ResolvConf: s.resolvConf, Sysctls: "/proc/sys", Cgroups: s.cgroups, Scratch: s.place, Holder: hold(true), UserHolder: holdUsers,
	})
	if err != nil {
		return nil, err
	}
	copied := files.New(s.base)
	containers, err := container.New(container.Options{
		Images: images, Runtime: driver, Sandbox: pod, Holder: hold(false), Disks: disk.New(s.hotplug), CDI: s.gpus, Scratch: s.place, Policy: s.policy, Secrets: s.secrets, Files: copied, Base: s.base, Cgroups: s.cgroups,
		CgroupParent: "/coffer", PipeSize: s.pipeSize,
	})
	if err != nil {
		return nil, err
	}
	return server.New(server.Options{
		Containers: containers, Pulls: s.pulls, Sandbox: pod, Network: network.New(), Files: copied,
		Policy: s.policy, BootPhases: s.phases, Complete: s.complete, AgentVersion: version, Init: s.init, Figures: s.gpus.Figures,
		Forwards: s.init, Scratch: s.init,
	})
}
