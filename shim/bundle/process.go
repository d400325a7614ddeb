package bundle

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	ocipb "github.com/coffer-project/coffer/proto/oci"
)

// defaultUmask is what a process gets anyway; the protocol has no field for another one.
const defaultUmask = 0o022

// ParseProcess decodes the JSON of an exec's process.
func ParseProcess(raw []byte) (*specs.Process, error) {
	if len(raw) > maxConfig {
		return nil, fmt.Errorf("process specification exceeds %d bytes: %w", maxConfig, errdefs.ErrInvalidArgument)
	}
	var p specs.Process
	if err := json.Unmarshal(raw, &p); err != nil {
		return nil, fmt.Errorf("parse process specification: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return &p, nil
}

// Process rebuilds a process specification, for an exec in a container with these users. A process without arguments
// fails with errdefs.ErrInvalidArgument.
func Process(ctx context.Context, p *specs.Process, users Users) (*ocipb.Process, error) {
	var d dropped
	out, err := rebuildProcess(p, users, &d)
	if err != nil {
		return nil, err
	}
	d.warn(ctx)
	return out, nil
}

func rebuildProcess(p *specs.Process, users Users, d *dropped) (*ocipb.Process, error) {
	if p == nil || len(p.Args) == 0 {
		return nil, fmt.Errorf("process has no arguments: %w", errdefs.ErrInvalidArgument)
	}
	// The guest has no AppArmor and no SELinux policy of the host's.
	d.note("process.apparmorProfile", p.ApparmorProfile != "")
	d.note("process.selinuxLabel", p.SelinuxLabel != "")
	d.note("process.scheduler", p.Scheduler != nil)
	d.note("process.ioPriority", p.IOPriority != nil)
	d.note("process.execCPUAffinity", p.ExecCPUAffinity != nil)
	d.note("process.commandLine", p.CommandLine != "")
	d.note("process.user.umask", p.User.Umask != nil && *p.User.Umask != defaultUmask)

	user, err := users.request(p.User)
	if err != nil {
		return nil, err
	}
	out := &ocipb.Process{
		Terminal:        p.Terminal,
		User:            user,
		Args:            p.Args,
		Env:             p.Env,
		Cwd:             p.Cwd,
		NoNewPrivileges: p.NoNewPrivileges,
	}
	if p.ConsoleSize != nil {
		out.ConsoleSize = &ocipb.Box{Height: uint32(p.ConsoleSize.Height), Width: uint32(p.ConsoleSize.Width)}
	}
	if c := p.Capabilities; c != nil {
		out.Capabilities = &ocipb.LinuxCapabilities{
			Bounding: c.Bounding, Effective: c.Effective, Inheritable: c.Inheritable, Permitted: c.Permitted, Ambient: c.Ambient,
		}
	}
	for _, r := range p.Rlimits {
		out.Rlimits = append(out.Rlimits, &ocipb.POSIXRlimit{Type: r.Type, Hard: r.Hard, Soft: r.Soft})
	}
	if p.OOMScoreAdj != nil {
		out.OOMScoreAdj = int64(*p.OOMScoreAdj)
	}
	return out, nil
}
