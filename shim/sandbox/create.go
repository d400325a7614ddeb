package sandbox

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
)

// Create reads the configuration, applies the pod's annotations and makes the state directory. It fails with
// errdefs.ErrAlreadyExists when the pod was created before, and with errdefs.ErrInvalidArgument for an invalid
// configuration or annotation.
func (p *Pod) Create(ctx context.Context, request Request) error {
	unlock, err := p.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if id := p.ID(); id != "" {
		return fmt.Errorf("create pod %s: the shim already serves pod %s: %w", request.ID, id, errdefs.ErrAlreadyExists)
	}
	if err := p.move(ctx, eventCreate); err != nil {
		return err
	}
	p.mu.Lock()
	p.request, p.createdAt = request, time.Now()
	p.mu.Unlock()
	if err := p.prepare(request); err != nil {
		return p.fail(ctx, fmt.Errorf("create pod %s: %w", request.ID, err))
	}
	return p.move(ctx, eventCreated)
}

func (p *Pod) prepare(request Request) error {
	if err := checkPodConfig(request.Config); err != nil {
		return err
	}
	conf, err := p.platform.LoadConfig(request.ConfigPath)
	if err != nil {
		return err
	}
	linux := request.Config.GetLinux()
	pod, err := conf.Pod(request.Config.GetAnnotations(), DemandOf(linux.GetOverhead(), linux.GetResources()))
	if err != nil {
		return err
	}
	dir := stateDirOf(conf.StateDir, request.Bundle)
	if request.OwnNetNS {
		request.NetNS = filepath.Join(dir, netNSName)
	}
	if request.Placed != nil {
		if err := request.Placed(dir); err != nil {
			return err
		}
	}
	if err := makeStateDir(dir); err != nil {
		return err
	}
	p.undo.push("remove state directory", func(context.Context) error { return os.RemoveAll(dir) })
	release, err := hold(dir)
	if err != nil {
		return err
	}
	p.undo.push("release state directory", func(context.Context) error { return release() })
	record := &Record{
		ID: request.ID, Namespace: request.Namespace, Bundle: request.Bundle, NetNS: request.NetNS, CreatedAt: time.Now(),
		ShimPID: os.Getpid(),
	}
	record.PodNamespace, record.PodName = podName(request.Config)
	if err := record.write(dir); err != nil {
		return err
	}
	if request.OwnNetNS {
		if err := p.makeNetNS(request.NetNS); err != nil {
			return err
		}
	}
	if len(request.Config.GetDnsConfig().GetServers()) == 0 {
		if request.Config.DnsConfig, err = p.platform.HostDNS(); err != nil {
			return fmt.Errorf("inherit the node's dns settings: %w", err)
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.config, p.pod, p.stateDir = conf, pod, dir
	p.serveStatus(dir)
	return nil
}

// netNSName is the file in the state directory to which a namespace of the pod's own is bound.
const netNSName = "netns"

func (p *Pod) makeNetNS(path string) error {
	made, err := p.platform.Network.Make(path)
	if err != nil {
		return err
	}
	p.undo.push("remove network namespace", func(context.Context) error {
		p.mu.Lock()
		p.netns = nil
		p.mu.Unlock()
		return made.Close()
	})
	p.mu.Lock()
	defer p.mu.Unlock()
	p.netns, p.request.NetNS = made, path
	return nil
}

// stateDirOf names a pod's state directory. It is short, because the path of a unix socket is limited to 107 bytes, and
// made from the bundle, which is what two containerd instances on one machine cannot have in common.
func stateDirOf(root, bundle string) string {
	sum := sha256.Sum256([]byte(bundle))
	return filepath.Join(root, hex.EncodeToString(sum[:8]))
}

func makeStateDir(dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return fmt.Errorf("make state directory: %w", err)
	}
	err := os.Mkdir(dir, 0o700)
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("state directory %s is left over from an earlier shim of the same bundle: %w", dir, errdefs.ErrAlreadyExists)
	}
	if err != nil {
		return fmt.Errorf("make state directory: %w", err)
	}
	return nil
}
