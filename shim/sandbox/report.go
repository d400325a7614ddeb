package sandbox

import (
	"encoding/json"
	"fmt"
	"time"

	agentpb "github.com/coffer-project/coffer/proto/agent"
	guestpullpb "github.com/coffer-project/coffer/proto/guestpull/v1"
	"github.com/coffer-project/coffer/shim/config"
)

// InfoKey is the entry of a sandbox's verbose status that holds a Report as JSON. `crictl inspectp` shows it.
const InfoKey = "coffer"

// Report is what a pod tells about itself. Durations are in microseconds, as everywhere in Coffer's reports. What the
// guest says in it is for people: nothing on the host may trust it for a decision.
type Report struct {
	State       string `json:"state"`
	VMPID       uint32 `json:"vm_pid,omitempty"`
	VCPUs       uint32 `json:"vcpus,omitempty"`
	MemoryMiB   uint32 `json:"memory_mib,omitempty"`
	ScratchMiB  uint32 `json:"scratch_mib,omitempty"`
	Accelerator string `json:"accelerator,omitempty"`
	// TEE is what the VM was launched under: snp or tdx. It is the host's word; a guest proves it by attestation.
	TEE            string `json:"tee,omitempty"`
	AgentVersion   string `json:"agent_version,omitempty"`
	InitdataDigest string `json:"initdata_digest,omitempty"`
	// Boot is the host's view of a pod's start, in order; GuestBoot the guest's own, from kernel to ready.
	Boot       []Phase                    `json:"boot,omitempty"`
	GuestBoot  []Phase                    `json:"guest_boot,omitempty"`
	Containers map[string]ContainerReport `json:"containers,omitempty"`
	// Degraded says what a running pod has to do without, and why.
	Degraded []string `json:"degraded,omitempty"`
	// Error and Console are present when the pod failed or died.
	Error   string   `json:"error,omitempty"`
	Console []string `json:"console,omitempty"`
}

// Phase is one step and the time that it took.
type Phase struct {
	Name   string `json:"name"`
	Micros int64  `json:"micros"`
}

// ContainerReport is what is known of one container.
type ContainerReport struct {
	State          string `json:"state"`
	Image          string `json:"image,omitempty"`
	ManifestDigest string `json:"manifest_digest,omitempty"`
	// CreateMicros includes the image pull in the guest, whose parts are Pull and Layers, and before it FilesMicros, in
	// which the host's files were copied.
	CreateMicros int64    `json:"create_micros,omitempty"`
	FilesMicros  int64    `json:"files_micros,omitempty"`
	StartMicros  int64    `json:"start_micros,omitempty"`
	Pull         []Phase  `json:"pull,omitempty"`
	Layers       []Layer  `json:"layers,omitempty"`
	KeyIDs       []string `json:"key_ids,omitempty"`
	Verdict      *Verdict `json:"verdict,omitempty"`
	Process      *Process `json:"process,omitempty"`
	// Progress is present while the container is being created.
	Progress *Progress `json:"progress,omitempty"`
}

// Process tells which parts of a container's first process the guest found to be what the verified image says: image or
// host, and entrypoint for arguments that begin with the image's entry point. Variables are those of the image that the
// process has otherwise: EnvOverridden after they were stated as they are, which is how containerd passes a pod's own;
// EnvAltered at once, as if the node had another configuration of the image; EnvRestored were missing.
type Process struct {
	Arguments     string   `json:"arguments"`
	WorkingDir    string   `json:"working_dir"`
	User          string   `json:"user"`
	EnvOverridden []string `json:"env_overridden,omitempty"`
	EnvAltered    []string `json:"env_altered,omitempty"`
	EnvRestored   []string `json:"env_restored,omitempty"`
	EnvAdded      uint32   `json:"env_added,omitempty"`
}

// Verdict tells why the guest's image security policy let the image run: the scope of the policy that decided, and for each
// of its requirements the type and, of sigstoreSigned, the key and what it had signed.
type Verdict struct {
	Scope    string       `json:"scope"`
	Accepted []Acceptance `json:"accepted"`
}

// Acceptance is one requirement that was met.
type Acceptance struct {
	Rule     string `json:"rule"`
	KeyID    string `json:"key_id,omitempty"`
	KeyURI   string `json:"key_uri,omitempty"`
	Digest   string `json:"digest,omitempty"`
	Identity string `json:"identity,omitempty"`
	Form     string `json:"form,omitempty"`
}

// Progress is how far an image pull is; bytes count layers as they are in the registry.
type Progress struct {
	Phase      string `json:"phase"`
	Layers     uint32 `json:"layers,omitempty"`
	LayersDone uint32 `json:"layers_done,omitempty"`
	Bytes      int64  `json:"bytes,omitempty"`
	TotalBytes int64  `json:"total_bytes,omitempty"`
	// BytesPerSecond is how fast the guest fetches of late, Micros the time since it was asked to.
	BytesPerSecond int64 `json:"bytes_per_second,omitempty"`
	Micros         int64 `json:"micros,omitempty"`
}

// Layer is one layer of a pulled image.
type Layer struct {
	Digest          string `json:"digest"`
	MediaType       string `json:"media_type"`
	CompressedBytes int64  `json:"compressed_bytes"`
	UnpackedBytes   int64  `json:"unpacked_bytes"`
	Encrypted       bool   `json:"encrypted"`
}

// AddPull adds what the guest reports of the container's image pull.
func (c *ContainerReport) AddPull(pull *guestpullpb.PullReport) {
	if pull.GetReference() != "" {
		c.Image = pull.GetReference()
	}
	c.ManifestDigest = pull.GetManifestDigest()
	c.Pull = phases(pull.GetPhases())
	c.KeyIDs = pull.GetKeyIds()
	if v := pull.GetVerdict(); v.GetScope() != "" {
		c.Verdict = &Verdict{Scope: v.GetScope()}
		for _, a := range v.GetAccepted() {
			c.Verdict.Accepted = append(c.Verdict.Accepted, Acceptance{
				Rule: a.GetRule(), KeyID: a.GetKeyId(), KeyURI: a.GetKeyUri(), Digest: a.GetDigest(), Identity: a.GetIdentity(), Form: a.GetForm(),
			})
		}
	}
	for _, layer := range pull.GetLayers() {
		c.Layers = append(c.Layers, Layer{
			Digest: layer.GetDigest(), MediaType: layer.GetMediaType(), CompressedBytes: layer.GetCompressedBytes(),
			UnpackedBytes: layer.GetUnpackedBytes(), Encrypted: layer.GetEncrypted(),
		})
	}
	if p := pull.GetProcess(); p != nil {
		c.Process = &Process{
			Arguments: p.GetArguments(), WorkingDir: p.GetWorkingDir(), User: p.GetUser(), EnvAdded: p.GetEnvAdded(),
			EnvOverridden: p.GetEnvOverridden(), EnvAltered: p.GetEnvAltered(), EnvRestored: p.GetEnvRestored(),
		}
	}
}

// The phases of a pod's start on the host.
const (
	phaseNetwork = "network"
	phaseDevices = "devices"
	phaseBoot    = "vm_boot"
	phaseAgent   = "agent_ready"
	phaseSetup   = "setup"
)

// logNames are the log fields of the phases.
var logNames = map[string]string{phaseNetwork: "t_network", phaseDevices: "t_devices", phaseBoot: "t_boot", phaseAgent: "t_agent", phaseSetup: "t_setup"}

// report collects what Report tells; Pod.mu guards it.
type report struct {
	boot           []Phase
	guestBoot      []Phase
	agentVersion   string
	initdataDigest string
	degraded       []string
}

func (r *report) guest(details *agentpb.AgentDetails, boot *guestpullpb.BootReport) {
	r.agentVersion = details.GetVersion()
	r.guestBoot = phases(boot.GetPhases())
}

func (r *report) logFields() map[string]any {
	fields := map[string]any{}
	for _, phase := range r.boot {
		fields[logNames[phase.Name]] = time.Duration(phase.Micros) * time.Microsecond
	}
	return fields
}

// phase measures until the returned function is called.
func (p *Pod) phase(name string) func() {
	started := time.Now()
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.report.boot = append(p.report.boot, Phase{Name: name, Micros: time.Since(started).Microseconds()})
	}
}

// Report tells about the pod and its containers.
func (p *Pod) Report() Report {
	var containers map[string]ContainerReport
	if p.members != nil {
		containers = p.members.Reports()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	report := Report{
		State: p.state.String(), VCPUs: p.pod.VCPUs, MemoryMiB: p.pod.MemoryMiB, ScratchMiB: p.pod.ScratchMiB,
		AgentVersion: p.report.agentVersion, InitdataDigest: p.report.initdataDigest,
		Boot: p.report.boot, GuestBoot: p.report.guestBoot, Containers: containers,
		Degraded: p.report.degraded,
	}
	if p.config != nil && p.config.TEE != config.TEENone {
		report.TEE = string(p.config.TEE)
	}
	if p.instance != nil {
		report.VMPID = uint32(p.instance.PID())
	}
	if accelerated, ok := p.instance.(interface{ Accelerator() string }); ok {
		report.Accelerator = accelerated.Accelerator()
	}
	if p.exit.Err != nil {
		report.Error = p.exit.Err.Error()
		if p.instance != nil {
			report.Console = p.instance.Console()
		}
	}
	return report
}

// info is the verbose part of a sandbox's status.
func (p *Pod) info() (map[string]string, error) {
	raw, err := json.Marshal(p.Report())
	if err != nil {
		return nil, fmt.Errorf("encode pod report: %w", err)
	}
	return map[string]string{InfoKey: string(raw)}, nil
}

func phases(reported []*guestpullpb.Phase) []Phase {
	var all []Phase
	for _, phase := range reported {
		all = append(all, Phase{Name: phase.GetName(), Micros: phase.GetMicros()})
	}
	return all
}
