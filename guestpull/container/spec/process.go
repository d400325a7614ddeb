package spec

import (
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coffer-project/coffer/proto/oci"
)

// capabilities are all that Linux 6.12 knows.
var capabilities = map[string]bool{}

func init() {
	for name := range strings.FieldsSeq(`AUDIT_CONTROL AUDIT_READ AUDIT_WRITE BLOCK_SUSPEND BPF CHECKPOINT_RESTORE CHOWN
		DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID IPC_LOCK IPC_OWNER KILL LEASE LINUX_IMMUTABLE MAC_ADMIN MAC_OVERRIDE
		MKNOD NET_ADMIN NET_BIND_SERVICE NET_BROADCAST NET_RAW PERFMON SETFCAP SETGID SETPCAP SETUID SYSLOG SYS_ADMIN
		SYS_BOOT SYS_CHROOT SYS_MODULE SYS_NICE SYS_PACCT SYS_PTRACE SYS_RAWIO SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG
		WAKE_ALARM`) {
		capabilities["CAP_"+name] = true
	}
	for name := range strings.FieldsSeq(`AS CORE CPU DATA FSIZE LOCKS MEMLOCK MSGQUEUE NICE NOFILE NPROC RSS RTPRIO
		RTTIME SIGPENDING STACK`) {
		rlimits["RLIMIT_"+name] = true
	}
}

var rlimits = map[string]bool{}

// BuildProcess rebuilds the process of a container or of an exec. It may have no arguments yet, and no working directory:
// see CheckProcess.
func BuildProcess(in *oci.Process) (*specs.Process, error) {
	if err := checkWords("argument", in.GetArgs(), maxArgs); err != nil {
		return nil, err
	}
	if err := checkEnv(in.GetEnv()); err != nil {
		return nil, err
	}
	cwd := in.GetCwd()
	if path.IsAbs(cwd) {
		cwd = "/" + strings.Trim(cwd, "/") // images have folders like /srv/
	}
	if cwd != "" {
		if err := checkPath("working directory", cwd); err != nil {
			return nil, err
		}
	}
	out := &specs.Process{
		Terminal:        in.GetTerminal(),
		Args:            slices.Clone(in.GetArgs()),
		Env:             slices.Clone(in.GetEnv()),
		Cwd:             cwd,
		NoNewPrivileges: in.GetNoNewPrivileges(),
	}
	if size := in.GetConsoleSize(); out.Terminal && size.GetHeight() > 0 && size.GetWidth() > 0 {
		out.ConsoleSize = &specs.Box{Height: uint(min(size.GetHeight(), 65535)), Width: uint(min(size.GetWidth(), 65535))}
	}
	if groups := in.GetUser().GetAdditionalGids(); len(groups) > maxGroups {
		return nil, refuse("%d additional groups: at most %d are allowed", len(groups), maxGroups)
	}
	out.User = specs.User{
		UID:            in.GetUser().GetUID(),
		GID:            in.GetUser().GetGID(),
		AdditionalGids: slices.Clone(in.GetUser().GetAdditionalGids()),
	}
	if adj := in.GetOOMScoreAdj(); adj < -1000 || adj > 1000 {
		return nil, refuse("oom score adjustment %d", adj)
	} else if adj != 0 {
		value := int(adj)
		out.OOMScoreAdj = &value
	}
	var err error
	if out.Capabilities, err = buildCapabilities(in.GetCapabilities()); err != nil {
		return nil, err
	}
	out.Rlimits, err = buildRlimits(in.GetRlimits())
	return out, err
}

// CheckProcess holds a process to the limits once more, after it was completed from an image. InvalidArgument: it is beyond
// them, or there is nothing to run.
func CheckProcess(p *specs.Process) error {
	if len(p.Args) == 0 {
		return refuse("process without arguments: neither the request nor the image says what to run")
	}
	if err := checkWords("argument", p.Args, maxArgs); err != nil {
		return err
	}
	if err := checkEnv(p.Env); err != nil {
		return err
	}
	return checkPath("working directory", p.Cwd)
}

// checkEnv also refuses what is no variable, which the runtime could only stumble over.
func checkEnv(env []string) error {
	for _, entry := range env {
		if strings.IndexByte(entry, '=') < 1 {
			return refuse("environment variable of %d bytes without a name or a value", len(entry))
		}
	}
	return checkWords("environment variable", env, maxEnv)
}

// checkWords refuses lists that are too long and words that cannot reach a program.
func checkWords(what string, words []string, limit int) error {
	if len(words) > limit {
		return refuse("%d %ss: at most %d are allowed", len(words), what, limit)
	}
	total := 0
	for _, w := range words {
		total += len(w)
		if strings.ContainsRune(w, 0) {
			return refuse("%s with a zero byte", what)
		}
	}
	if total > maxText {
		return refuse("%ss of %d bytes: at most %d are allowed", what, total, maxText)
	}
	return nil
}

func buildCapabilities(in *oci.LinuxCapabilities) (*specs.LinuxCapabilities, error) {
	if in == nil {
		return nil, nil
	}
	for _, set := range [][]string{in.GetBounding(), in.GetEffective(), in.GetInheritable(), in.GetPermitted(), in.GetAmbient()} {
		for _, name := range set {
			if !capabilities[name] {
				return nil, refuse("capability %.64q is unknown to this guest", name)
			}
		}
	}
	// The kernel grants an ambient capability only to who has it permitted and inheritable; runc warns about others.
	var ambient []string
	for _, name := range in.GetAmbient() {
		if slices.Contains(in.GetPermitted(), name) && slices.Contains(in.GetInheritable(), name) {
			ambient = append(ambient, name)
		}
	}
	return &specs.LinuxCapabilities{
		Bounding:    unique(in.GetBounding()),
		Effective:   unique(in.GetEffective()),
		Inheritable: unique(in.GetInheritable()),
		Permitted:   unique(in.GetPermitted()),
		Ambient:     unique(ambient),
	}, nil
}

// unique also bounds the list by the number of known names.
func unique(names []string) []string {
	out := slices.Clone(names)
	slices.Sort(out)
	return slices.Compact(out)
}

func buildRlimits(in []*oci.POSIXRlimit) ([]specs.POSIXRlimit, error) {
	if len(in) > maxRlimits {
		return nil, refuse("%d resource limits: at most %d are allowed", len(in), maxRlimits)
	}
	var out []specs.POSIXRlimit
	for _, l := range in {
		if !rlimits[l.GetType()] || l.GetSoft() > l.GetHard() {
			return nil, refuse("resource limit %.64q", l.GetType())
		}
		out = append(out, specs.POSIXRlimit{Type: l.GetType(), Hard: l.GetHard(), Soft: l.GetSoft()})
	}
	return out, nil
}
