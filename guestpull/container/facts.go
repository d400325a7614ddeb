package container

import (
	"slices"
	"strconv"

	"github.com/coffer-project/coffer/guestpull/container/origin"
	"github.com/coffer-project/coffer/guestpull/container/rootfs"
	"github.com/coffer-project/coffer/guestpull/image"
	"github.com/coffer-project/coffer/proto/agentpolicy"
	"github.com/coffer-project/coffer/proto/imagepolicy"
)

// facts is what a policy is told of a container beside the request.
func (m *Manager) facts(p *plan, stage string) *agentpolicy.Facts {
	f := &agentpolicy.Facts{Stage: stage, Sandbox: p.sandbox, Running: m.running(p.id)}
	if p.sandbox {
		return f
	}
	f.Disks, f.Passed, f.CDI = p.disks, p.passed, p.brought
	root := imageFacts(p.image, p.pulled)
	f.Image = &root
	for _, v := range p.volumes {
		one := imageFacts(v.request, v.pulled)
		one.MountPoint = v.mountPoint
		f.Volumes = append(f.Volumes, one)
	}
	return f
}

func imageFacts(wanted image.Request, pulled *image.Image) agentpolicy.Image {
	out := agentpolicy.Image{Reference: wanted.Reference, Requested: wanted.Digest}
	if pulled != nil {
		out.Target, out.Digest = pulled.TargetDigest.String(), pulled.ManifestDigest.String()
		config := pulled.Config.Config
		out.Config, out.Signature = &config, signatureFacts(&pulled.Verdict)
	}
	return out
}

// signatureFacts is what the image security policy has found; nil where it wanted no signature.
func signatureFacts(v *imagepolicy.Verdict) *agentpolicy.Signature {
	if !v.Signed() {
		return nil
	}
	out := &agentpolicy.Signature{Verified: true}
	for _, a := range v.Accepted {
		for _, name := range []string{a.KeyID, a.KeyURI} {
			if name != "" {
				out.Signers = append(out.Signers, name)
			}
		}
	}
	return out
}

// running lists the containers in which something runs or is about to, but for one.
func (m *Manager) running(but string) []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := []string{}
	for id, c := range m.containers {
		if state := c.State(); id != but && state != StateStopped && state != StateRemoving {
			out = append(out, id)
		}
	}
	slices.Sort(out)
	return out
}

// processFacts is the same of a container whose process is known.
func (m *Manager) processFacts(c *Container, p *plan) *agentpolicy.Facts {
	f := m.facts(p, agentpolicy.StageContainer)
	c.mu.Lock()
	parts := c.origin
	c.mu.Unlock()
	process := p.spec.Process
	f.Process = &agentpolicy.Process{
		Args: process.Args, Cwd: process.Cwd, UID: process.User.UID, GID: process.User.GID, Groups: process.User.AdditionalGids,
		ArgsOrigin: string(parts.Args), CwdOrigin: string(parts.WorkingDir), UserOrigin: string(parts.User), Env: variables(parts),
	}
	if verified, err := rootfs.Resolve(c.root, strconv.FormatUint(uint64(process.User.UID), 10), rootfs.User{}, false); err == nil {
		f.Process.ImageGroups = append(slices.Clone(verified.Groups), verified.GID)
	}
	return f
}

func variables(parts *origin.Process) []agentpolicy.Variable {
	out := make([]agentpolicy.Variable, 0, len(parts.Env))
	for _, v := range parts.Env {
		out = append(out, agentpolicy.Variable{Name: v.Name, Value: v.Value, Origin: string(v.Origin), Verified: v.Verified})
	}
	return out
}
