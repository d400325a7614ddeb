package container

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coffer-project/coffer/guestpull/container/cgroup"
	"github.com/coffer-project/coffer/guestpull/container/mount"
	"github.com/coffer-project/coffer/guestpull/container/origin"
	"github.com/coffer-project/coffer/guestpull/container/rootfs"
	"github.com/coffer-project/coffer/guestpull/container/spec"
	"github.com/coffer-project/coffer/guestpull/image"
	agentpb "github.com/coffer-project/coffer/proto/agent"
)

// cleanupTimeout bounds what has to be undone when there is no caller any more to set a deadline.
const cleanupTimeout = 30 * time.Second

// maxContainers bounds the containers of one pod.
const maxContainers = 1024

// Options are the parts that a Manager works with; all but PipeSize are needed.
type Options struct {
	Images  Images
	Runtime Runtime
	Sandbox Sandbox
	Holder  Holder
	Disks   Disks
	CDI     CDI
	Scratch Scratch
	Policy  Policy
	Secrets Secrets
	Files   Files
	// Base is Kata's folder in the guest, /run/kata-containers.
	Base    string
	Cgroups cgroup.Root
	// CgroupParent is the group below which each container gets its own, /coffer.
	CgroupParent string
	// PipeSize is the size of the pipes of standard output in bytes; 0 leaves the kernel's default.
	PipeSize int
}

// Manager holds the containers of the pod. Its methods are safe for concurrent use.
type Manager struct {
	Options

	mu         sync.Mutex
	containers map[string]*Container
}

// New returns a manager without containers.
func New(o Options) (*Manager, error) {
	if o.Images == nil || o.Runtime == nil || o.Sandbox == nil || o.Holder == nil || o.Disks == nil || o.CDI == nil || o.Scratch == nil || o.Policy == nil || o.Secrets == nil || o.Files == nil || o.Base == "" || o.Cgroups == "" || o.CgroupParent == "" {
		return nil, errors.New("container manager lacks a part")
	}
	return &Manager{Options: o, containers: make(map[string]*Container)}, nil
}

// Container is one container.
type Container struct {
	id      string
	dir     string // everything of the container that is not in the image store
	execID  string // a second name of the first process
	sandbox bool   // stands in for the sandbox container; no runtime knows it
	cgroup  string
	root    string // in which users are looked up
	users   spec.Users
	// strictGroups: its processes get none of the groups that the image puts their users in
	strictGroups bool
	termLog      string // where the container's termination message is; empty: nowhere

	cancel   context.CancelFunc // gives the creation up
	finished chan struct{}      // closed when the creation has ended
	turn     chan struct{}      // one life-cycle step at a time
	undo     undo               // belongs to the creation, then to whoever has the turn
	pins     []func() error     // unmount volumes that only the runtime needs to see

	mu        sync.Mutex
	state     State
	init      *process
	execs     map[string]*process
	execOrder []string // for forgetting the oldest first
	report    *image.Report
	config    *ocispec.ImageConfig // of the image, verified; set once, before the first process
	origin    *origin.Process      // of the first process, once it is known
	user      *rootfs.User         // of the first process, once it is known
	secrets   map[string]string    // those of the first process, by their sealed text; set once, before it
}

func (m *Manager) rootfs(id string) string { return filepath.Join(m.Base, id, "rootfs") }

// cgroupPath is the guest's own choice, whatever the host says.
func (m *Manager) cgroupPath(id string) string { return m.CgroupParent + "/" + id }

// sharedDir is below which the host's files are copied.
func (m *Manager) sharedDir() string { return filepath.Join(m.Base, "shared/containers") }

// sandboxDir is where storages of the pod are mounted.
func (m *Manager) sandboxDir() string { return filepath.Join(m.Base, "sandbox") }

// allowSource tells where bind mounts may come from: copied files and the pod's own storages.
func (m *Manager) allowSource(path string) bool {
	return mount.Below(m.sharedDir(), path) || mount.Below(m.sandboxDir(), path)
}

// reserve enters a container that is being created.
func (m *Manager) reserve(c *Container) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, exists := m.containers[c.id]; exists {
		return fmt.Errorf("container %s: %w", c.id, errdefs.ErrAlreadyExists)
	}
	if len(m.containers) >= maxContainers {
		return fmt.Errorf("pod has %d containers already: %w", maxContainers, errdefs.ErrResourceExhausted)
	}
	m.containers[c.id] = c
	return nil
}

func (m *Manager) forget(c *Container) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.containers[c.id] == c {
		delete(m.containers, c.id)
	}
}

// get returns a container by its id. NotFound: there is none.
func (m *Manager) get(id string) (*Container, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	c, ok := m.containers[id]
	if !ok {
		return nil, fmt.Errorf("container %s: %w", id, errdefs.ErrNotFound)
	}
	return c, nil
}

// IDs returns the containers there are, in no order.
func (m *Manager) IDs() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]string, 0, len(m.containers))
	for id := range m.containers {
		out = append(out, id)
	}
	return out
}

// begin waits for the container's life-cycle turn; call the result to give it back.
func (c *Container) begin(ctx context.Context) (func(), error) {
	select {
	case c.turn <- struct{}{}:
		return func() { <-c.turn }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("container %s is busy: %w", c.id, ctx.Err())
	}
}

// Stats returns the container's figures.
func (m *Manager) Stats(_ context.Context, id string) (*agentpb.CgroupStats, error) {
	c, err := m.get(id)
	if err != nil {
		return nil, err
	}
	if c.sandbox {
		return &agentpb.CgroupStats{}, nil // nothing of the workload is in it
	}
	if err := c.require(StateCreated, StateRunning, StatePaused, StateStopped); err != nil {
		return nil, err
	}
	return m.Cgroups.Stats(c.cgroup)
}

// PullReport returns how the container's image came in. NotFound: no such container, or it has no image.
func (m *Manager) PullReport(id string) (*image.Report, error) {
	c, err := m.get(id)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.report == nil {
		return nil, fmt.Errorf("container %s has pulled no image: %w", id, errdefs.ErrNotFound)
	}
	return c.report, nil
}

// User returns who the container's first process runs as. NotFound: no such container, or it is the sandbox, in which no program
// runs, or the image has not come in yet.
func (m *Manager) User(id string) (rootfs.User, error) {
	c, err := m.get(id)
	if err != nil {
		return rootfs.User{}, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.user == nil {
		return rootfs.User{}, fmt.Errorf("user of container %s is not known: %w", id, errdefs.ErrNotFound)
	}
	return *c.user, nil
}
