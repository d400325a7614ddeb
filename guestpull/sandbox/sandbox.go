package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/coffer-project/coffer/guestpull/container"
	"github.com/coffer-project/coffer/guestpull/container/cgroup"
	"github.com/coffer-project/coffer/guestpull/container/spec"
	agentpb "github.com/coffer-project/coffer/proto/agent"
)

// State is where the sandbox is in its life.
type State int

// The states, see the package's diagram.
const (
	StateNone State = iota
	StateCreated
	StateDestroyed
)

// String returns the state's name for messages.
func (s State) String() string {
	return [...]string{"not created", "created", "destroyed"}[s]
}

// cleanupTimeout bounds what is undone after a failed Create.
const cleanupTimeout = 10 * time.Second

// Options are what a Sandbox works with; all are needed.
type Options struct {
	// Base is Kata's folder in the guest, /run/kata-containers.
	Base string
	// ResolvConf is the file with the name servers that the guest itself uses, /etc/resolv.conf.
	ResolvConf string
	// Sysctls is the folder of kernel variables, /proc/sys.
	Sysctls string
	Cgroups cgroup.Root
	// Scratch is the guest's scratch disk.
	Scratch container.Scratch
	// Holder starts the first process of a new pid namespace, which reaps there and does nothing else.
	Holder container.Holder
	// UserHolder does the same in new user, UTS and IPC namespaces.
	UserHolder func(users spec.Users) (container.Process, error)
}

// Sandbox is the pod. Its methods are safe for concurrent use.
type Sandbox struct {
	Options
	oom oomQueue

	mu       sync.Mutex
	state    State
	id       string
	hostname string
	spaces   container.Namespaces
	users    spec.Users                  // of the user namespace
	mapped   container.Namespaces        // those of containers in a user namespace
	storages map[string]*agentpb.Storage // by mount point
	memories map[string]*memory          // those of them that are file systems of their own, by mount point
	undo     []func(ctx context.Context) error
}

// New returns a sandbox that is not created yet.
func New(o Options) (*Sandbox, error) {
	if o.Base == "" || o.ResolvConf == "" || o.Sysctls == "" || o.Cgroups == "" || o.Scratch == nil || o.Holder == nil || o.UserHolder == nil {
		return nil, errors.New("sandbox lacks a part")
	}
	return &Sandbox{Options: o, oom: newOOMQueue(), storages: make(map[string]*agentpb.Storage), memories: make(map[string]*memory)}, nil
}

func (s *Sandbox) dir() string { return filepath.Join(s.Base, "sandbox") }

// sharedDir is where the host's files are copied.
func (s *Sandbox) sharedDir() string { return filepath.Join(s.Base, "shared/containers") }

// Create makes what the containers share. AlreadyExists: there is a sandbox. FailedPrecondition: there was one.
func (s *Sandbox) Create(ctx context.Context, req *agentpb.CreateSandboxRequest) (retErr error) {
	if id := req.GetSandboxId(); id != "" {
		if err := container.CheckID("sandbox", id); err != nil {
			return err
		}
	}
	servers, err := resolvConf(req.GetDns())
	if err != nil {
		return err
	}
	if err := checkHostname(req.GetHostname()); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch s.state {
	case StateCreated:
		return fmt.Errorf("sandbox %s: %w", s.id, errdefs.ErrAlreadyExists)
	case StateDestroyed:
		return fmt.Errorf("this guest has run a sandbox already and takes no other: %w", errdefs.ErrFailedPrecondition)
	}
	defer func() {
		if retErr != nil {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
			defer cancel()
			retErr = errors.Join(retErr, s.unwind(ctx))
		}
	}()
	for _, dir := range []string{s.dir(), s.sharedDir()} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("create sandbox: %w", err)
		}
	}
	if err := s.makeNamespaces(req.GetHostname(), req.GetSandboxPidns()); err != nil {
		return fmt.Errorf("create sandbox: %w", err)
	}
	if err := s.mountAll(ctx, req.GetStorages()); err != nil {
		return fmt.Errorf("create sandbox: %w", err)
	}
	if servers != nil {
		if err := writeFile(s.ResolvConf, servers); err != nil {
			return fmt.Errorf("create sandbox: write name servers: %w", err)
		}
	}
	s.id, s.hostname, s.state = req.GetSandboxId(), req.GetHostname(), StateCreated
	log.G(ctx).WithField("sandbox", s.id).Info("sandbox created")
	return nil
}

// Destroy undoes Create; the containers must be gone. It is idempotent, and allowed without a sandbox.
func (s *Sandbox) Destroy(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.oom.close()
	if err := s.unwind(ctx); err != nil {
		return fmt.Errorf("destroy sandbox: %w", err)
	}
	s.state = StateDestroyed
	return nil
}

// unwind undoes in reverse and keeps what failed. The caller holds the lock.
func (s *Sandbox) unwind(ctx context.Context) error {
	for len(s.undo) > 0 {
		last := len(s.undo) - 1
		if err := s.undo[last](ctx); err != nil {
			return err
		}
		s.undo = s.undo[:last]
	}
	clear(s.storages)
	s.spaces, s.mapped, s.users = container.Namespaces{}, container.Namespaces{}, spec.Users{}
	return nil
}

// Namespaces returns what a container joins. A user namespace is made with the first container that asks for it.
// FailedPrecondition: there is no sandbox, it has no shared pid namespace, or its user namespace has other mappings.
func (s *Sandbox) Namespaces(sharePID bool, users spec.Users) (container.Namespaces, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state != StateCreated {
		return container.Namespaces{}, fmt.Errorf("sandbox is %s: %w", s.state, errdefs.ErrFailedPrecondition)
	}
	out := s.spaces
	if users.Mapped() {
		if err := s.mapUsers(users); err != nil {
			return container.Namespaces{}, err
		}
		out = s.mapped
	}
	if !sharePID {
		out.PID = ""
	} else if out.PID == "" {
		return container.Namespaces{}, fmt.Errorf("sandbox was created without a shared pid namespace: %w", errdefs.ErrFailedPrecondition)
	}
	return out, nil
}

// SetSysctl sets a variable of the pod's network namespace, which is the guest's own. The caller has checked the name.
func (s *Sandbox) SetSysctl(name, value string) error {
	if !sysctlName.MatchString(name) {
		return fmt.Errorf("sysctl %.64q: %w", name, errdefs.ErrInvalidArgument)
	}
	path := filepath.Join(slices.Concat([]string{s.Sysctls}, splitDots(name))...)
	if err := os.WriteFile(path, []byte(value), 0); err != nil {
		return fmt.Errorf("set sysctl %s: %w", name, err)
	}
	return nil
}
