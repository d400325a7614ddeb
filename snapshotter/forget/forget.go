// Package forget removes reference-only layers from containerd's records, from within the snapshotter that made them.
//
// containerd shares a layer between all images that have the same layers up to it. Where an image for guests was pulled
// first, it takes the layer for unpacked and never asks again. Only containerd can forget it, and it must not be waited
// for while it waits for the snapshotter: the lock that it holds meanwhile is the one that a removal needs. So everything
// here happens in the background. A removal that fails or comes too late costs one more try of whoever pulls.
package forget

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc"

	"github.com/coffer-project/coffer/snapshotter"
	"github.com/coffer-project/coffer/snapshotter/images"
	"github.com/coffer-project/coffer/snapshotter/server"
)

// timeout bounds one removal: a walk over all snapshots and one call for each that goes.
const timeout = 30 * time.Second

// Forgetter implements snapshotter.Forgetter. It is safe for concurrent use.
type Forgetter struct {
	conn   *grpc.ClientConn
	client snapshotsapi.SnapshotsClient
	// life ends what is in progress when the program ends; no request outlives it.
	life context.Context
	end  context.CancelFunc

	mu      sync.Mutex
	running map[key]bool
	wait    sync.WaitGroup
}

type key struct {
	namespace, plugin string
	chain             digest.Digest
}

// New makes a Forgetter for the containerd that listens on a unix socket. It connects when first used. ctx carries the
// logger.
func New(ctx context.Context, address string) (*Forgetter, error) {
	conn, err := images.Dial(address)
	if err != nil {
		return nil, err
	}
	f := &Forgetter{conn: conn, client: snapshotsapi.NewSnapshotsClient(conn), running: map[key]bool{}}
	f.life, f.end = context.WithCancel(context.WithoutCancel(ctx))
	return f, nil
}

// Close gives up what is in progress and drops the connection.
func (f *Forgetter) Close() error {
	f.mu.Lock()
	f.end() // nothing is begun after this, so that the wait is for all
	f.mu.Unlock()
	f.wait.Wait()
	return f.conn.Close()
}

// Forget begins to remove the layer with the chain ID and everything on it from the records of the plugin and the
// namespace that ctx, a request's, is about. Nothing is done twice at a time.
func (f *Forgetter) Forget(ctx context.Context, chain digest.Digest) {
	namespace, ok := namespaces.Namespace(ctx)
	k := key{namespace, server.Plugin(ctx), chain}
	logger := log.G(ctx).WithField("digest", chain.String())
	if !ok || k.plugin == "" {
		logger.Warn("layer cannot be forgotten: the request names no containerd namespace or plugin")
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.running[k] || f.life.Err() != nil {
		return
	}
	f.running[k] = true
	f.wait.Go(func() {
		defer func() {
			f.mu.Lock()
			defer f.mu.Unlock()
			delete(f.running, k)
		}()
		ctx, cancel := context.WithTimeout(namespaces.WithNamespace(f.life, k.namespace), timeout)
		defer cancel()
		removed, err := f.remove(ctx, k)
		logger = logger.WithField("snapshots", removed)
		if err != nil {
			logger.WithError(err).Warn("reference-only layers are still in the way of an image for this host")
			return
		}
		logger.Info("reference-only layers made way for an image for this host")
	})
}

// remove takes away the lowest reference-only layer below k.chain, or that itself, with all on it, from the top down.
func (f *Forgetter) remove(ctx context.Context, k key) (removed int, err error) {
	all, err := f.list(ctx, k.plugin)
	if err != nil {
		return 0, err
	}
	lowest := ""
	for name := k.chain.String(); isReference(all[name]); name = all[name].GetParent() {
		lowest = name
	}
	if lowest == "" {
		return 0, nil // somebody else was faster
	}
	children := map[string][]string{}
	for name, info := range all {
		// Nothing else can lie there. If it does, containerd refuses to remove what is below it.
		if isReference(info) {
			children[info.GetParent()] = append(children[info.GetParent()], name)
		}
	}
	var faults []error
	var visit func(name string)
	visit = func(name string) {
		for _, child := range children[name] {
			visit(child)
		}
		_, err := f.client.Remove(ctx, &snapshotsapi.RemoveSnapshotRequest{Snapshotter: k.plugin, Key: name})
		if err = errgrpc.ToNative(err); err != nil && !errdefs.IsNotFound(err) {
			faults = append(faults, fmt.Errorf("remove snapshot %s: %w", name, err))
			return
		}
		removed++
	}
	visit(lowest)
	return removed, errors.Join(faults...)
}

func isReference(info *snapshotsapi.Info) bool {
	return info.GetKind() == snapshotsapi.Kind_COMMITTED && info.GetLabels()[snapshotter.LabelMode] == string(snapshotter.ModeReference)
}

func (f *Forgetter) list(ctx context.Context, plugin string) (map[string]*snapshotsapi.Info, error) {
	stream, err := f.client.List(ctx, &snapshotsapi.ListSnapshotsRequest{Snapshotter: plugin})
	if err != nil {
		return nil, fmt.Errorf("list snapshots of %s: %w", plugin, errgrpc.ToNative(err))
	}
	all := map[string]*snapshotsapi.Info{}
	for {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return nil, fmt.Errorf("list snapshots of %s: %w", plugin, errgrpc.ToNative(err))
		}
		for _, info := range resp.GetInfo() {
			all[info.GetName()] = info
		}
	}
}

var _ snapshotter.Forgetter = (*Forgetter)(nil)
