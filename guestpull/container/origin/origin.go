package origin

import (
	"path"
	"slices"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	guestpull "github.com/coffer-project/coffer/proto/guestpull/v1"
)

// Origin is where a part of a process comes from.
type Origin string

// The origins of a process's parts.
const (
	// Image: it is what the verified configuration says.
	Image Origin = "image"
	// Entrypoint, of arguments only: the image's entry point comes first, and the rest is the host's.
	Entrypoint Origin = "entrypoint"
	// Host: it is the host's own.
	Host Origin = "host"
	// Restored, of variables only: the image has it, the host left it out, and the guest put it back.
	Restored Origin = "restored"
	// Overridden, of variables only: the host states the image's value and then its own, which counts.
	Overridden Origin = "overridden"
	// Altered, of variables only: the image has another value, and the host does not know it. See the package's text.
	Altered Origin = "altered"
	// Engine, of variables only: what container engines add on their own to every process: PATH, TERM and HOSTNAME.
	Engine Origin = "engine"
)

// Process tells of each part of a process where it comes from. It has the values, for a policy; reports and logs carry
// names alone.
type Process struct {
	Args       Origin
	WorkingDir Origin
	User       Origin
	Env        []Variable
}

// Variable is one variable of a process's environment.
type Variable struct {
	Name, Value string
	Origin      Origin
	// Verified is the image's value, of variables that the image has.
	Verified string
}

// Names lists the variables of an origin, in their order.
func (p *Process) Names(o Origin) []string {
	var names []string
	for _, v := range p.Env {
		if v.Origin == o {
			names = append(names, v.Name)
		}
	}
	return names
}

// Proto returns what the host is told: no values, and of its own variables not even names.
func (p *Process) Proto() *guestpull.ProcessOrigin {
	return &guestpull.ProcessOrigin{
		Arguments: string(p.Args), WorkingDir: string(p.WorkingDir), User: string(p.User),
		EnvOverridden: p.Names(Overridden), EnvAltered: p.Names(Altered), EnvRestored: p.Names(Restored),
		EnvAdded: uint32(len(p.Names(Host)) + len(p.Names(Engine))),
	}
}

// Merge completes the host's process from the verified configuration and tells where its parts come from. The user is
// left to [Process.JudgeUser]. The result may have no arguments, where neither source has any.
func Merge(config *ocispec.ImageConfig, process *specs.Process) *Process {
	p := &Process{User: Host}
	process.Args, p.Args = args(config, process.Args)
	process.Cwd, p.WorkingDir = folder(config.WorkingDir, process.Cwd)
	process.Env, p.Env = environment(config.Env, process.Env)
	return p
}

// args compares arguments with the image's entry point and command.
func args(config *ocispec.ImageConfig, stated []string) ([]string, Origin) {
	verified := slices.Concat(config.Entrypoint, config.Cmd)
	switch entry := config.Entrypoint; {
	case len(stated) == 0:
		return verified, Image
	case slices.Equal(stated, verified):
		return stated, Image
	case len(entry) > 0 && len(stated) >= len(entry) && slices.Equal(stated[:len(entry)], entry):
		return stated, Entrypoint
	default:
		return stated, Host
	}
}

// folder compares the working directory with the image's; an image that has none means the root.
func folder(verified, stated string) (string, Origin) {
	verified = path.Clean("/" + verified)
	if stated == "" || stated == verified {
		return verified, Image
	}
	return stated, Host
}

// Variables that engines set for every process, where the image does not.
const (
	pathName     = "PATH"
	termName     = "TERM"
	hostnameName = "HOSTNAME"
)

// environment merges variables by name. Later ones of the host replace earlier ones, as they do in the runtime; those
// that the host left out come first. Entries of the image without a name or a "=" are none: engines drop them, too.
func environment(config, stated []string) ([]string, []Variable) {
	verified := map[string]string{}
	var order []string
	for _, entry := range config {
		name, value, ok := strings.Cut(entry, "=")
		if !ok || name == "" {
			continue
		}
		if _, twice := verified[name]; !twice {
			order = append(order, name)
		}
		verified[name] = value
	}
	var own []Variable
	place := map[string]int{}
	knows := map[string]bool{} // the image's variables that the host has stated with their verified values
	for _, entry := range stated {
		name, value, _ := strings.Cut(entry, "=")
		of, inImage := verified[name]
		knows[name] = knows[name] || inImage && value == of
		if i, again := place[name]; again {
			own[i].Value = value
			continue
		}
		place[name] = len(own)
		own = append(own, Variable{Name: name, Value: value, Verified: of})
	}
	for i := range own {
		_, inImage := verified[own[i].Name]
		own[i].Origin = judge(&own[i], inImage, knows[own[i].Name])
	}
	var all []Variable
	for _, name := range order {
		if _, there := place[name]; !there {
			all = append(all, Variable{Name: name, Value: verified[name], Verified: verified[name], Origin: Restored})
		}
	}
	all = append(all, own...)
	return entries(all), all
}

// judge finds the origin of a variable that the host has stated.
func judge(v *Variable, inImage, known bool) Origin {
	engine := v.Name == pathName || v.Name == termName || v.Name == hostnameName
	switch {
	case inImage && v.Value == v.Verified:
		return Image
	case inImage && (known || engine):
		return Overridden
	case inImage:
		return Altered
	case engine:
		return Engine
	default:
		return Host
	}
}

// entries writes variables as a process takes them.
func entries(all []Variable) []string {
	out := make([]string, 0, len(all))
	for _, v := range all {
		out = append(out, v.Name+"="+v.Value)
	}
	return out
}

// JudgeUser compares who the process runs as with who the image says. Both are resolved: the ids are those of the image's
// own files, additional groups in order. Whether the primary group is among those changes nothing.
func (p *Process) JudgeUser(runs, verified specs.User) {
	p.User = Host
	if runs.UID == verified.UID && runs.GID == verified.GID && slices.Equal(others(runs), others(verified)) {
		p.User = Image
	}
}

func others(u specs.User) []uint32 {
	return slices.DeleteFunc(slices.Clone(u.AdditionalGids), func(gid uint32) bool { return gid == u.GID })
}
