package spec

import (
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coffer-project/coffer/proto/oci"
)

// Bind is the type of a mount whose source is a path in the guest.
const Bind = "bind"

// common are the mount options that every type may have. Shared propagation is only for bind mounts of some sources: a mount that a
// container makes must not appear in another one that does not know of it, or in the agent's own folders.
var common = words(`ro rw suid nosuid dev nodev exec noexec sync async dirsync relatime norelatime atime noatime diratime
	nodiratime strictatime nostrictatime lazytime nolazytime symfollow nosymfollow defaults private rprivate slave rslave unbindable
	runbindable rro rrw rnosuid rnodev rnoexec rnoatime rrelatime rstrictatime rnosymfollow`)

// fileSystem says what a mount of one type may look like.
type fileSystem struct {
	sources []string // accepted sources; the first one is used
	options []string // accepted options besides the common ones
	keys    []string // accepted KEY=VALUE options
	targets []string // accepted destinations; empty: any
}

// fileSystems are the types that live in the guest kernel alone. None takes anything from outside the guest.
var fileSystems = map[string]fileSystem{
	"proc":    {sources: []string{"proc"}, targets: []string{"/proc"}},
	"sysfs":   {sources: []string{"sysfs"}, targets: []string{"/sys"}},
	"devpts":  {sources: []string{"devpts"}, options: []string{"newinstance"}, keys: []string{"ptmxmode", "mode", "gid", "uid", "max"}},
	"mqueue":  {sources: []string{"mqueue"}},
	"cgroup":  {sources: []string{"cgroup", "cgroup2"}, targets: []string{"/sys/fs/cgroup"}},
	"cgroup2": {sources: []string{"cgroup", "cgroup2"}, targets: []string{"/sys/fs/cgroup"}},
	"tmpfs": {sources: []string{"tmpfs", "shm", "none"}, options: []string{"tmpcopyup"},
		keys: []string{"size", "mode", "uid", "gid", "nr_inodes", "nr_blocks", "huge"}},
}

func words(s string) map[string]bool {
	out := make(map[string]bool)
	for w := range strings.FieldsSeq(s) {
		out[w] = true
	}
	return out
}

func buildMounts(in []*oci.Mount, allowSource func(string) bool) ([]specs.Mount, error) {
	if len(in) > maxMounts {
		return nil, refuse("%d mounts: at most %d are allowed", len(in), maxMounts)
	}
	out := make([]specs.Mount, 0, len(in))
	for _, m := range in {
		built, err := buildMount(m, allowSource)
		if err != nil {
			return nil, err
		}
		out = append(out, built)
	}
	return out, nil
}

func buildMount(m *oci.Mount, allowSource func(string) bool) (specs.Mount, error) {
	dest := m.GetDestination()
	if err := checkPath("mount destination", dest); err != nil {
		return specs.Mount{}, err
	}
	if dest == "/" {
		return specs.Mount{}, refuse("mount over the root file system")
	}
	if isBind(m) {
		return buildBind(m, allowSource)
	}
	fs, known := fileSystems[m.GetType()]
	if !known {
		return specs.Mount{}, refuse("mount at %s: file system type %.64q is not allowed in this guest", dest, m.GetType())
	}
	if len(fs.targets) > 0 && !slices.Contains(fs.targets, dest) {
		return specs.Mount{}, refuse("mount at %s: %s belongs at %s", dest, m.GetType(), fs.targets[0])
	}
	if src := m.GetSource(); src != "" && src != m.GetType() && !slices.Contains(fs.sources, src) {
		return specs.Mount{}, refuse("mount at %s: source %.200q of a %s", dest, src, m.GetType())
	}
	for _, option := range m.GetOptions() {
		if !common[option] && !slices.Contains(fs.options, option) && !hasKey(fs.keys, option) {
			return specs.Mount{}, refuse("mount at %s: option %.64q is not allowed", dest, option)
		}
	}
	return specs.Mount{Destination: dest, Type: m.GetType(), Source: fs.sources[0], Options: slices.Clone(m.GetOptions())}, nil
}

func buildBind(m *oci.Mount, allowSource func(string) bool) (specs.Mount, error) {
	dest, src := m.GetDestination(), m.GetSource()
	if err := checkPath("mount source", src); err != nil {
		return specs.Mount{}, err
	}
	if !allowSource(src) {
		return specs.Mount{}, refuse("mount at %s: source %.200q is not a folder or file that was handed to this pod", dest, src)
	}
	for _, option := range m.GetOptions() {
		if !common[option] && propagations[option] == "" && option != "bind" && option != "rbind" {
			return specs.Mount{}, refuse("mount at %s: option %.64q is not allowed", dest, option)
		}
	}
	options := slices.Clone(m.GetOptions())
	if !slices.Contains(options, "bind") && !slices.Contains(options, "rbind") {
		options = append(options, "rbind")
	}
	return specs.Mount{Destination: dest, Type: Bind, Source: src, Options: settlePropagation(options)}, nil
}

// isBind: runc itself treats a mount with the option as a bind mount, whatever its type says.
func isBind(m *oci.Mount) bool {
	return m.GetType() == Bind || slices.Contains(m.GetOptions(), "bind") || slices.Contains(m.GetOptions(), "rbind")
}

func hasKey(keys []string, option string) bool {
	key, value, ok := strings.Cut(option, "=")
	return ok && slices.Contains(keys, key) && len(value) > 0 && len(value) < 32 && !strings.ContainsAny(value, ", \t\n")
}
