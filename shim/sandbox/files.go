package sandbox

import (
	"context"

	"github.com/coffer-project/coffer/shim/agent"
	"github.com/coffer-project/coffer/shim/bundle"
	"github.com/coffer-project/coffer/shim/hostfiles"
	"github.com/coffer-project/coffer/shim/network"
)

// Files are the pod's own hosts, resolv.conf and hostname in the guest, by where a container sees them. Under the shim
// sandboxer nobody else writes them. In podsandbox mode there are none: containerd mounts its own into every container.
func (p *Pod) Files() map[string]string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.files
}

// copyFiles writes the pod's files into the guest.
func (p *Pod) copyFiles(ctx context.Context, guest *agent.Client, attachment *network.Attachment) error {
	if !p.request.OwnFiles {
		return nil
	}
	var ips []string
	for _, iface := range attachment.Interfaces {
		for _, address := range iface.Addresses {
			ips = append(ips, address.Addr().String())
		}
	}
	contents, err := bundle.SandboxFiles(p.request.Config, ips)
	if err != nil {
		return err
	}
	jobs, files := bundle.SandboxJobs(p.request.ID, contents)
	if err := hostfiles.Copy(ctx, guest, jobs); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.files = files
	return nil
}
