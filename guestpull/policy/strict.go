package policy

import (
	"context"
	"path"
	"strings"

	"google.golang.org/protobuf/proto"

	agentpb "github.com/coffer-project/coffer/proto/agent"
	"github.com/coffer-project/coffer/proto/agentpolicy"
)

// why ends each refusal of the strict default, so that whoever reads it knows where to allow more.
const why = " (the pod's measured document has no policy.rego: make one with cofferctl policy generate)"

// The places of Kata's protocol in the guest.
const (
	sharedDir = "/run/kata-containers/shared/containers/"
	shmDir    = "/run/kata-containers/sandbox/shm"
)

// Strict is what holds when the measured document brings no policy: containers run what their verified images say, with the variables
// and files that Kubernetes gives to every container, and nobody looks in. It cannot know which images the owner wants; that takes a
// policy, or signatures.
type Strict struct{ table *Builtin }

// NewStrict returns the default for documents without a policy.
func NewStrict() *Strict { return &Strict{NewBuiltin()} }

// Allow implements [Engine].
func (s *Strict) Allow(ctx context.Context, method string, request proto.Message) error {
	if err := s.table.Allow(ctx, method, request); err != nil {
		return err
	}
	if r, ok := strictRules[method]; ok {
		if reason := r(request); reason != "" {
			return deny(method, reason+why)
		}
	}
	return nil
}

// AllowContainer implements [Engine].
func (s *Strict) AllowContainer(_ context.Context, request *agentpb.CreateContainerRequest, facts *agentpolicy.Facts) error {
	reason := checkContainer(request, facts)
	if reason == "" && facts.Stage == agentpolicy.StageContainer && !facts.Sandbox {
		reason = checkProcess(facts.Process)
	}
	if reason == "" && len(facts.SealedFiles) > 0 {
		reason = "a mounted file holds a sealed secret, and the host may have put it before other readers than it is for"
	}
	if reason != "" {
		return deny(createContainer, reason+why)
	}
	return nil
}

// strictRules are what is narrower than in the table.
var strictRules = map[string]rule{
	"ExecProcess":   never("nobody may run further programs in containers"),
	"Forward":       never("nobody may connect to the pod's loopback"),
	"WriteStdin":    never("nobody may write to a program's input"),
	"CreateSandbox": strictSandbox,
	"CopyFile":      strictCopy,
	"RemoveFiles":   allow,
}

// strictSandbox allows the one storage that every pod has.
func strictSandbox(request proto.Message) string {
	r, ok := request.(*agentpb.CreateSandboxRequest)
	if !ok {
		return reasonOtherType
	}
	if r.GetSandboxPidns() {
		return "containers must not see one another's processes"
	}
	for _, s := range r.GetStorages() {
		if s.GetDriver() != "ephemeral" || s.GetMountPoint() != shmDir {
			return "the pod has a storage other than shared memory"
		}
	}
	return ""
}

// strictCopy keeps to the area for copied files. The guest resolves the path within it as well.
func strictCopy(request proto.Message) string {
	r, ok := request.(*agentpb.CopyFileRequest)
	if !ok {
		return reasonOtherType
	}
	if p := r.GetPath(); path.Clean(p) != p || !strings.HasPrefix(p, sharedDir) {
		return "files are copied to the folder for them alone"
	}
	return ""
}

// The capabilities that container engines give when nobody asks for others.
var usualCapabilities = set(`CAP_CHOWN CAP_DAC_OVERRIDE CAP_FSETID CAP_FOWNER CAP_MKNOD CAP_NET_RAW CAP_SETGID CAP_SETUID CAP_SETFCAP
	CAP_SETPCAP CAP_NET_BIND_SERVICE CAP_SYS_CHROOT CAP_KILL CAP_AUDIT_WRITE`)

// What containerd sets in every pod's network namespace, so that containers need fewer capabilities.
var usualSysctls = map[string]string{"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "0 2147483647"}

// The mounts that every container has, by destination, with their types.
var usualMounts = map[string]map[string]bool{
	"/proc": set("proc"), "/dev": set("tmpfs"), "/dev/pts": set("devpts"), "/dev/mqueue": set("mqueue"), "/sys": set("sysfs"),
	"/sys/fs/cgroup": set("cgroup cgroup2"), "/run": set("tmpfs"), "/dev/shm": set("tmpfs bind"),
	// What Kubernetes gives to every container. It comes from the host, which can write anything into it.
	"/etc/hosts": set("bind"), "/etc/hostname": set("bind"), "/etc/resolv.conf": set("bind"), "/dev/termination-log": set("bind"),
	"/var/run/secrets/kubernetes.io/serviceaccount": set("bind"), "/run/secrets/kubernetes.io/serviceaccount": set("bind"),
}

func set(words string) map[string]bool {
	out := map[string]bool{}
	for word := range strings.FieldsSeq(words) {
		out[word] = true
	}
	return out
}

// guestDriven is the type of passed-through devices. The guest itself says what a container gets with a GPU, and GPUs work only once they
// are attested. Disks are another matter: the host can read and write them.
const guestDriven = "vfio-pci-gk"

func hasDevices(request *agentpb.CreateContainerRequest) bool {
	for _, d := range request.GetDevices() {
		if d.GetType() != guestDriven {
			return true
		}
	}
	return len(request.GetOCI().GetLinux().GetDevices()) > 0
}

// checkContainer judges all of a container but its process. An image is one storage, the root; what more the host wants is refused.
func checkContainer(request *agentpb.CreateContainerRequest, facts *agentpolicy.Facts) string {
	spec := request.GetOCI()
	switch {
	case len(request.GetStorages()) > 1 || len(facts.Volumes) > 0:
		return "the container has storages besides its image"
	case facts.Sandbox:
		return "" // no program of it runs
	case hasDevices(request):
		return "the container has devices"
	case len(facts.Disks) > 0:
		return "the container has disks of the host's"
	case request.GetSandboxPidns():
		return "containers must not see one another's processes"
	}
	for key, value := range spec.GetLinux().GetSysctl() {
		if usualSysctls[key] != value {
			return "the container sets kernel variables besides the usual ones"
		}
	}
	c := spec.GetProcess().GetCapabilities()
	for _, list := range [][]string{c.GetBounding(), c.GetEffective(), c.GetInheritable(), c.GetPermitted(), c.GetAmbient()} {
		for _, name := range list {
			if !usualCapabilities[name] {
				return "the container has capabilities beyond the usual ones"
			}
		}
	}
	root := spec.GetRoot().GetPath()
	for _, m := range spec.GetMounts() {
		// A folder that the image declares as a volume is mounted over itself.
		own := m.GetType() == "bind" && m.GetSource() == path.Join(root, m.GetDestination())
		if !own && !usualMounts[m.GetDestination()][m.GetType()] {
			return "the container has a mount besides the usual ones"
		}
	}
	return ""
}
