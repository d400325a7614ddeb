package podpolicy

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coffer-project/coffer/proto/agentpolicy"
)

//go:embed rules.rego
var rules string

//go:embed devices.rego
var deviceRules string

// Image is what is known of an image.
type Image struct {
	// Digests are those that name it: of the manifest, and of the index that it is in.
	Digests []string
	Config  ocispec.ImageConfig
}

// Options change what a policy allows beyond the manifest.
type Options struct {
	// Lookup returns an image by the name in the manifest.
	Lookup func(ctx context.Context, name string) (*Image, error)
	// AnyValue names variables whose value the host may choose: those from secrets and config maps, and others that are not known here.
	AnyValue []string
	// NoLogs names containers whose output the host must not see.
	NoLogs []string
	// AllowExec lets the host run any program in the containers.
	AllowExec bool
}

// rule is what the rules are told of one container. See rules.rego for the meaning.
type rule struct {
	Digests      []string           `json:"digests"`
	Args         []string           `json:"args"`
	Cwd          string             `json:"cwd"`
	UID          *int64             `json:"uid"`
	GID          *int64             `json:"gid"`
	Groups       []int64            `json:"groups"`
	Env          map[string]string  `json:"env"`
	EnvPatterns  map[string]string  `json:"env_patterns"`
	ImageEnv     []string           `json:"image_env"`
	Capabilities []string           `json:"capabilities"`
	Mounts       map[string]string  `json:"mounts"`
	Images       map[string]*source `json:"images"`
	Devices      []string           `json:"devices"`
	GPUs         int                `json:"gpus"`
	Exec         [][]string         `json:"exec"`
	ExecAny      bool               `json:"exec_any"`
	Logs         []string           `json:"logs"`
	Stdin        bool               `json:"stdin"`
	After        []string           `json:"after"`
	Beside       []string           `json:"beside"`
	Once         bool               `json:"once"`
}

// source is an image that is mounted as a volume, or a folder of it.
type source struct {
	Digests []string `json:"digests"`
	Path    string   `json:"path"` // below the image's root, without slashes around it
}

type data struct {
	Containers map[string]*rule  `json:"containers"`
	SharePID   bool              `json:"share_pid"`
	Sysctls    map[string]string `json:"sysctls"`
}

// Generate writes the policy of the pod in a manifest. InvalidArgument: it has something that cannot be bound; all faults are named.
func Generate(ctx context.Context, manifest []byte, o Options) (string, error) {
	pod, err := readPod(manifest)
	if err != nil {
		return "", err
	}
	d := &data{Containers: map[string]*rule{}, SharePID: pod.ShareProcessNamespace, Sysctls: map[string]string{}}
	if s := pod.SecurityContext; s != nil {
		for _, v := range s.Sysctls {
			d.Sysctls[v.Name] = v.Value
		}
	}
	if err := d.addAll(ctx, pod, o); err != nil {
		return "", err
	}
	text, err := json.MarshalIndent(d, "", "  ")
	if err != nil {
		return "", fmt.Errorf("write policy: %w", err)
	}
	// The union keeps the compiler from holding the rules against this very data: without exec probes, say, "some command in
	// container.exec" could never hold, which is no mistake.
	_, further, _ := strings.Cut(deviceRules, "import rego.v1\n") // a policy is one text with one head
	policy := rules + further + "\n# --- this pod -----\n\npolicy_data := object.union({}, " + string(text) + ")\n"
	if _, err := agentpolicy.Compile(policy); err != nil {
		return "", fmt.Errorf("the policy that was made cannot be enforced: %w", err)
	}
	return policy, nil
}

// addAll goes through the containers in the order in which they start.
func (d *data) addAll(ctx context.Context, pod *podSpec, o Options) error {
	var faults []error
	var before, beside []string
	add := func(c *container, after []string, once bool) {
		r, err := newRule(ctx, pod, c, o)
		if err != nil {
			faults = append(faults, fmt.Errorf("container %s: %w", c.Name, err))
			return
		}
		if _, twice := d.Containers[c.Name]; twice || c.Name == "" {
			faults = append(faults, fmt.Errorf("two containers are called %q, or have no name", c.Name))
		}
		r.After, r.Beside, r.Once = list(after), list(beside), once
		d.Containers[c.Name] = r
	}
	for i := range pod.InitContainers {
		c := &pod.InitContainers[i]
		add(c, before, false)
		if before = append(before, c.Name); c.RestartPolicy == "Always" {
			beside = append(beside, c.Name)
		}
	}
	for i := range pod.Containers {
		c := &pod.Containers[i]
		add(c, before, pod.RestartPolicy == "Never")
		before = append(before, c.Name)
	}
	if len(pod.Containers) == 0 {
		faults = append(faults, errors.New("pod has no containers"))
	}
	if err := errors.Join(faults...); err != nil {
		return fmt.Errorf("%w: %w", errdefs.ErrInvalidArgument, err)
	}
	return nil
}

// list is a copy that is never null in JSON.
func list(in []string) []string { return append([]string{}, in...) }

// engineCapabilities are what container engines give when nobody asks for others.
const engineCapabilities = `CAP_AUDIT_WRITE CAP_CHOWN CAP_DAC_OVERRIDE CAP_FOWNER CAP_FSETID CAP_KILL CAP_MKNOD CAP_NET_BIND_SERVICE CAP_NET_RAW
	CAP_SETFCAP CAP_SETGID CAP_SETPCAP CAP_SETUID CAP_SYS_CHROOT`

func newRule(ctx context.Context, pod *podSpec, c *container, o Options) (*rule, error) {
	img, err := o.Lookup(ctx, c.Image)
	if err != nil {
		return nil, err
	}
	r := &rule{
		Digests: img.Digests, ImageEnv: list(img.Config.Env), Groups: []int64{}, Capabilities: strings.Fields(engineCapabilities), Mounts: map[string]string{},
		Images: map[string]*source{}, Devices: []string{}, Exec: [][]string{}, ExecAny: o.AllowExec, Logs: []string{"stdout", "stderr"}, Stdin: c.Stdin,
	}
	if slices.Contains(o.NoLogs, c.Name) {
		r.Logs = []string{}
	}
	variables, err := newVariables(c, o)
	if err != nil {
		return nil, err
	}
	r.Env, r.EnvPatterns = variables.values, variables.patterns
	if r.Args, err = arguments(c, &img.Config, variables); err != nil {
		return nil, err
	}
	if r.Cwd = path.Clean("/" + img.Config.WorkingDir); c.WorkingDir != "" {
		r.Cwd = path.Clean("/" + c.WorkingDir)
	}
	r.Exec = append(r.Exec, c.programs()...)
	return r, errors.Join(r.addSecurity(pod.SecurityContext, c.SecurityContext), r.addMounts(ctx, pod, c, o), r.addDevices(pod, c))
}

// programs are what kubelet runs in the container.
func (c *container) programs() [][]string {
	var out [][]string
	probes := []*probe{c.LivenessProbe, c.ReadinessProbe, c.StartupProbe}
	if c.Lifecycle != nil {
		probes = append(probes, c.Lifecycle.PostStart, c.Lifecycle.PreStop)
	}
	for _, p := range probes {
		if p != nil && p.Exec != nil {
			out = append(out, p.Exec.Command)
		}
	}
	return out
}

// addSecurity takes over what the two contexts say, the container's first.
func (r *rule) addSecurity(pod, own *securityContext) error {
	for _, s := range []*securityContext{pod, own} {
		if s == nil {
			continue
		}
		if s.Privileged {
			return errors.New("a privileged container cannot be bound: name the capabilities that it needs")
		}
		if s.RunAsUser != nil {
			r.UID = s.RunAsUser
		}
		if s.RunAsGroup != nil {
			r.GID = s.RunAsGroup
		}
		for _, group := range s.SupplementalGroups {
			r.Groups = append(r.Groups, int64(group))
		}
		if s.FSGroup != nil {
			r.Groups = append(r.Groups, *s.FSGroup)
		}
		if s.Capabilities == nil {
			continue
		}
		for _, name := range s.Capabilities.Add {
			if name == "ALL" {
				return errors.New("capability ALL cannot be bound: name those that it needs")
			}
			r.Capabilities = append(r.Capabilities, "CAP_"+strings.TrimPrefix(name, "CAP_"))
		}
	}
	if r.UID == nil && (r.GID != nil || len(r.Groups) > 0) {
		return errors.New("groups without runAsUser cannot be bound: give the user, too")
	}
	return nil
}
