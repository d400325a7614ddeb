package plugin

import (
	"context"
	"errors"
	"sync"

	"github.com/containerd/containerd/v2/pkg/shim"
	"github.com/containerd/containerd/v2/pkg/shutdown"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"
	"github.com/containerd/ttrpc"

	"github.com/coffer-project/coffer/shim/containers"
	"github.com/coffer-project/coffer/shim/manager"
	"github.com/coffer-project/coffer/shim/sandbox"
	"github.com/coffer-project/coffer/shim/task"
)

// RuntimeName is how containerd's configuration names this runtime.
const RuntimeName = "io.containerd.coffer.v2"

// podPlugin is the type of the plugin that holds the pod; the services require it.
const podPlugin plugin.Type = "io.coffer.shim.pod.v1"

func init() {
	registry.Register(&plugin.Registration{
		Type: podPlugin, ID: "pod",
		Requires: []plugin.Type{plugins.EventPlugin, plugins.InternalPlugin},
		InitFn:   func(ic *plugin.InitContext) (any, error) { return newHost(ic) },
	})
	registry.Register(&plugin.Registration{
		Type: plugins.TTRPCPlugin, ID: "task",
		Requires: []plugin.Type{podPlugin},
		InitFn: func(ic *plugin.InitContext) (any, error) {
			return fromHost(ic, func(h *host) shim.TTRPCService { return h.tasks })
		},
	})
	registry.Register(&plugin.Registration{
		Type: plugins.TTRPCPlugin, ID: "sandbox",
		Requires: []plugin.Type{podPlugin},
		InitFn: func(ic *plugin.InitContext) (any, error) {
			return fromHost(ic, func(h *host) shim.TTRPCService { return h.sandboxes })
		},
	})
}

func fromHost(ic *plugin.InitContext, pick func(*host) shim.TTRPCService) (any, error) {
	instance, err := ic.GetSingle(podPlugin)
	if err != nil {
		return nil, err
	}
	return pick(instance.(*host)), nil
}

// host is what one serving process holds.
type host struct {
	tasks     *task.Service
	sandboxes *sandbox.Service
	guard     *guard
}

var _ shim.TTRPCServerUnaryOptioner = (*host)(nil)

// UnaryServerInterceptor implements containerd's shim.TTRPCServerUnaryOptioner.
func (h *host) UnaryServerInterceptor() ttrpc.UnaryServerInterceptor { return h.guard.intercept }

func newHost(ic *plugin.InitContext) (*host, error) {
	publisher, err := ic.GetByID(plugins.EventPlugin, "publisher")
	if err != nil {
		return nil, err
	}
	instance, err := ic.GetByID(plugins.InternalPlugin, "shutdown")
	if err != nil {
		return nil, err
	}
	end := instance.(shutdown.Service)
	record, err := openRecord(".")
	if err != nil {
		return nil, err
	}
	records := containers.New(ic.Properties[plugins.PropertyGRPCAddress])
	return assemble(ic.Context, platform(), publisher.(shim.Publisher), records, end, record), nil
}

// assemble connects the parts. end's callback stops the pod and then delivers the last events.
func assemble(
	life context.Context, p sandbox.Platform, publisher shim.Publisher, records task.Records, end shutdown.Service,
	record *bundleRecord,
) *host {
	pod := sandbox.New(life, p)
	guard := newGuard(pod, record.removeSocket, end.Shutdown)
	h := &host{guard: guard}
	h.tasks = task.NewService(life, task.Options{
		Pod: pod, Publisher: publisher, Records: records, ConfigPath: record.configPath(), Placed: record.placed, Hooked: record.hooked, Shutdown: guard.shutdown,
	})
	h.sandboxes = sandbox.NewService(sandbox.ServiceOptions{
		Pod: pod, ConfigPath: record.configPath(), Placed: record.placed, Shutdown: guard.shutdown,
	})
	end.RegisterCallback(func(ctx context.Context) error {
		guard.stop()
		return errors.Join(pod.Stop(ctx), h.tasks.Close(ctx), publisher.Close(), record.removeSocket())
	})
	return h
}

// bundleRecord is the record that the manager left in the bundle. It is read at once: containerd removes the bundle while
// the shim still ends.
type bundleRecord struct {
	bundle   string
	unlisted sync.Once

	mu     sync.Mutex
	record manager.Record
}

func openRecord(bundle string) (*bundleRecord, error) {
	record, err := manager.ReadRecord(bundle)
	if err != nil {
		return nil, err
	}
	return &bundleRecord{bundle: bundle, record: *record}, nil
}

func (b *bundleRecord) configPath() string { return b.record.ConfigPath }

// placed remembers the pod's state directory for the process that may have to clean up.
func (b *bundleRecord) placed(stateDir string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.record.StateDir = stateDir
	return b.record.Write(b.bundle)
}

// hooked remembers whether hooks are to be run for the end of the shim's own container.
func (b *bundleRecord) hooked(pending bool) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.record.Hooks = pending
	return b.record.Write(b.bundle)
}

// removeSocket removes the shim's socket, once: after the first time the path may be another shim's.
func (b *bundleRecord) removeSocket() (err error) {
	b.unlisted.Do(func() { err = manager.RemoveSocket(b.record.Address) })
	return err
}
