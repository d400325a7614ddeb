package container

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coffer-project/coffer/guestpull/container/mount"
	"github.com/coffer-project/coffer/guestpull/container/spec"
	"github.com/coffer-project/coffer/guestpull/image"
	agentpb "github.com/coffer-project/coffer/proto/agent"
	"github.com/coffer-project/coffer/proto/agentpolicy"
)

// Names on the wire.
const (
	driverImagePull = "image_guest_pull"
	driverEphemeral = "ephemeral"
	driverLocal     = "local"

	keyManifestDigest = "containerd.io/snapshot/cri.manifest-digest"
	keyPlatform       = "io.coffer/platform"
	keyTermination    = "io.kubernetes.container.terminationMessagePath"
	keyGroups         = "io.coffer/supplemental-groups-policy"
)

// Values of keyGroups, after Kubernetes' SupplementalGroupsPolicy. Without one it is groupsMerge.
const (
	groupsMerge  = "merge"
	groupsStrict = "strict"
)

// kindKeys are the annotations by which container engines tell a sandbox container from a workload.
var kindKeys = []string{"io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType"}

// Limits on one request.
const (
	maxStorages      = 128
	maxDriverOptions = 16
	maxDriverOption  = 256 << 10
	maxReference     = 1024
)

// reserved are the folders beside those of the containers.
var reserved = map[string]bool{"image": true, "sandbox": true, "shared": true}

// plan is a checked request. Nothing has been done yet but the pod's user namespace.
type plan struct {
	id        string
	execID    string
	sandbox   bool
	image     image.Request
	pulled    *image.Image // of the root, once it is there
	volumes   []imageVolume
	storages  []*agentpb.Storage // all but the images
	devices   []plannedDevice
	functions []string         // where passed-through devices are
	disks     []string         // names of the disks among them, once they are found
	passed    []string         // passed-through devices that annotations name
	brought   *agentpolicy.CDI // what those bring along, once it is known
	spec      *specs.Spec
	users     spec.Users
	userNS    string // path of the user namespace
	userName  string
	// strictGroups: the process gets none of the groups that the image puts its user in
	strictGroups bool
	sysctls      map[string]string
	termDest     string // destination of the termination log's mount
}

// newPlan checks a request, asks the policy about it, and rebuilds from it what will be done.
func (m *Manager) newPlan(ctx context.Context, req *agentpb.CreateContainerRequest) (*plan, error) {
	p, err := m.readRequest(req)
	if err != nil {
		return nil, err
	}
	if err := m.Policy.AllowContainer(ctx, req, m.facts(p, agentpolicy.StageRequest)); err != nil {
		return nil, err
	}
	return p, m.buildSpec(p, req)
}

// readRequest checks what a request says of images, storages and devices.
func (m *Manager) readRequest(req *agentpb.CreateContainerRequest) (*plan, error) {
	id := req.GetContainerId()
	if err := CheckID("container", id); err != nil {
		return nil, err
	}
	if reserved[id] {
		return nil, refuse(req, "the guest itself uses this name")
	}
	p := &plan{id: id, execID: req.GetExecId()}
	if p.execID != "" {
		if err := CheckID("exec", p.execID); err != nil {
			return nil, err
		}
	}
	if err := checkUnsupported(req); err != nil {
		return nil, err
	}
	if err := p.planDevices(req); err != nil {
		return nil, err
	}
	metadata, err := m.planStorages(p, req.GetStorages())
	if err != nil {
		return nil, err
	}
	if err := p.planKind(req, metadata); err != nil {
		return nil, err
	}
	return p, p.planPassed(req)
}

// buildSpec rebuilds the specification, and finds the pod's namespaces for it.
func (m *Manager) buildSpec(p *plan, req *agentpb.CreateContainerRequest) error {
	var err error
	if p.users, err = spec.MappedUsers(req.GetOCI().GetLinux()); err != nil {
		return err
	}
	ns, err := m.Sandbox.Namespaces(req.GetSandboxPidns() && !p.sandbox, p.users)
	if err != nil {
		return err
	}
	p.userNS = ns.User
	p.spec, err = spec.Build(req.GetOCI(), spec.Options{
		ContainerID: p.id,
		Rootfs:      m.rootfs(p.id),
		CgroupPath:  m.cgroupPath(p.id),
		UTS:         ns.UTS,
		IPC:         ns.IPC,
		PID:         ns.PID,
		User:        ns.User,
		Users:       p.users,
		Disks:       p.devicePaths(),
		AllowSource: func(path string) bool {
			_, _, own := m.ownImage(p, path)
			return own || m.allowSource(path)
		},
		AllowShared: func(path string) bool { return mount.Below(filepath.Join(m.sandboxDir(), "ephemeral"), path) },
	})
	if err != nil {
		return err
	}
	if err := m.checkOwnImages(p); err != nil {
		return err
	}
	p.sysctls = spec.TakeNetSysctls(p.spec)
	p.termDest = req.GetOCI().GetAnnotations()[keyTermination]
	if p.strictGroups, err = strictGroups(req); err != nil {
		return err
	}
	p.userName, err = userName(req)
	return err
}

// strictGroups reads the policy for supplemental groups.
func strictGroups(req *agentpb.CreateContainerRequest) (bool, error) {
	switch policy := req.GetOCI().GetAnnotations()[keyGroups]; policy {
	case "", groupsMerge:
		return false, nil
	case groupsStrict:
		return true, nil
	default:
		return false, refuse(req, "policy for supplemental groups %.32q is neither %q nor %q", policy, groupsMerge, groupsStrict)
	}
}

// checkUnsupported refuses parts of a request that would otherwise have no effect, or an effect that nobody checked.
func checkUnsupported(req *agentpb.CreateContainerRequest) error {
	switch {
	case len(req.GetSharedMounts()) > 0:
		return refuse(req, "mounts shared between containers are not offered")
	case req.GetStdinPort() != 0 || req.GetStdoutPort() != 0 || req.GetStderrPort() != 0:
		return refuse(req, "stdio over ports of its own is not offered; use the stream calls")
	}
	return nil
}

func refuse(req *agentpb.CreateContainerRequest, format string, args ...any) error {
	return fmt.Errorf("container %s: "+format+": %w", append(append([]any{req.GetContainerId()}, args...), errdefs.ErrInvalidArgument)...)
}

// userName returns the name that has to be looked up in the image, empty for a numeric user.
func userName(req *agentpb.CreateContainerRequest) (string, error) {
	name := req.GetOCI().GetProcess().GetUser().GetUsername()
	if s := req.GetStringUser(); s.GetUid() != "" || s.GetGid() != "" || len(s.GetAdditionalGids()) > 0 {
		if name != "" || s.GetUid() == "" || len(s.GetAdditionalGids()) > 0 {
			return "", refuse(req, "the user is named in two ways or only in part")
		}
		name = s.GetUid()
		if s.GetGid() != "" {
			name += ":" + s.GetGid()
		}
	}
	if len(name) > 256 || strings.ContainsAny(name, "\x00\n") {
		return "", refuse(req, "user name of %d bytes", len(name))
	}
	return name, nil
}

// planStorages sorts the storages and returns what is said about the image of the root.
func (m *Manager) planStorages(p *plan, storages []*agentpb.Storage) (map[string]string, error) {
	if len(storages) > maxStorages {
		return nil, fmt.Errorf("container %s: %d storages: %w", p.id, len(storages), errdefs.ErrInvalidArgument)
	}
	var pulls []*agentpb.Storage
	for _, s := range storages {
		switch s.GetDriver() {
		case driverImagePull:
			pulls = append(pulls, s)
		case driverEphemeral, driverLocal:
			if s.GetMountPoint() == m.rootfs(p.id) || !m.allowSource(s.GetMountPoint()) {
				return nil, fmt.Errorf("container %s: storage mount point %.200q: %w", p.id, s.GetMountPoint(), errdefs.ErrInvalidArgument)
			}
			p.storages = append(p.storages, s)
		default:
			return nil, fmt.Errorf("container %s: storage driver %.32q is not offered by this guest: %w", p.id, s.GetDriver(), errdefs.ErrInvalidArgument)
		}
	}
	return m.planPulls(p, pulls)
}

// pullMetadata decodes image_guest_pull={"metadata":{…}}.
func pullMetadata(options []string) (map[string]string, error) {
	if len(options) > maxDriverOptions {
		return nil, fmt.Errorf("%d driver options: %w", len(options), errdefs.ErrInvalidArgument)
	}
	var found []string
	for _, o := range options {
		if text, ok := strings.CutPrefix(o, driverImagePull+"="); ok {
			found = append(found, text)
		}
	}
	if len(found) != 1 || len(found[0]) > maxDriverOption {
		return nil, fmt.Errorf("image storage needs exactly one %s option: %w", driverImagePull, errdefs.ErrInvalidArgument)
	}
	var volume struct {
		Metadata map[string]string `json:"metadata"`
	}
	if err := json.Unmarshal([]byte(found[0]), &volume); err != nil {
		return nil, fmt.Errorf("%s option is not a JSON object with metadata: %w", driverImagePull, errdefs.ErrInvalidArgument)
	}
	return volume.Metadata, nil
}

// planKind decides whether this is a sandbox container. That stands in two places that the host fills, the specification and the image's
// metadata. Both must agree, or one part of the guest would run as workload what another took for the sandbox.
func (p *plan) planKind(req *agentpb.CreateContainerRequest, metadata map[string]string) error {
	inSpec, inImage := saysSandbox(req.GetOCI().GetAnnotations()), saysSandbox(metadata)
	if inSpec != inImage && (inSpec || hasKind(metadata)) {
		return refuse(req, "image metadata and annotations disagree on whether it is the sandbox")
	}
	p.sandbox = inSpec && inImage
	switch {
	case p.sandbox && len(p.storages)+len(p.devices)+len(p.volumes) > 0:
		return refuse(req, "a sandbox container has no storages and no devices")
	case !p.sandbox && p.image.Reference == "":
		return refuse(req, "no image reference")
	}
	return nil
}

func hasKind(metadata map[string]string) bool {
	for _, key := range kindKeys {
		if _, ok := metadata[key]; ok {
			return true
		}
	}
	return false
}

func saysSandbox(annotations map[string]string) bool {
	for _, key := range kindKeys {
		if annotations[key] == "sandbox" {
			return true
		}
	}
	return false
}
