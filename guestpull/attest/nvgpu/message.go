package nvgpu

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/proto/kbs"
)

// Version is that of Question and Answer. Both sides refuse any other: they are parts of one release, but not of one image.
const Version = 1

// Limits of the messages in bytes.
const (
	MaxQuestion = 4 << 10
	MaxAnswer   = 1 << 20
)

// Op is what is asked.
type Op string

// The questions.
const (
	OpGPUs     Op = "gpus"
	OpState    Op = "state"
	OpEvidence Op = "evidence"
	OpSetReady Op = "set-ready"
)

// Question is what the program reads.
type Question struct {
	Version int    `json:"version"`
	Op      Op     `json:"op"`
	Nonce   []byte `json:"nonce,omitempty"` // of OpEvidence: kbs.NVIDIANonce bytes
	Ready   bool   `json:"ready,omitempty"` // of OpSetReady
}

// Answer is what it writes. Exactly one of the members that belong to the question is there, or Failure.
type Answer struct {
	Version  int                 `json:"version"`
	Failure  *Failure            `json:"failure,omitempty"`
	GPUs     *[]GPU              `json:"gpus,omitempty"`
	State    *State              `json:"state,omitempty"`
	Evidence *kbs.NVIDIAEvidence `json:"evidence,omitempty"`
	Done     bool                `json:"done,omitempty"`
}

// GPU is one GPU as the driver sees it. Nothing of it is attested.
type GPU struct {
	// Index counts the driver's GPUs from 0.
	Index int `json:"index"`
	// UUID is the driver's name for it, for example GPU-6ab3...
	UUID string `json:"uuid"`
	// Name is the product's.
	Name string `json:"name"`
	// Arch is the generation; empty for one that cannot attest.
	Arch kbs.NVIDIAArch `json:"arch,omitempty"`
	// Address is where it is on the PCI bus, as sysfs writes it: 0000:01:00.0.
	Address string `json:"address"`
}

// Feature is a setting of confidential computing.
type Feature string

// The values of State.Mode.
const (
	ModeOff      Feature = "off"
	ModeOn       Feature = "on"
	ModeDevTools Feature = "devtools" // on, but the GPU may be debugged: protects nothing
)

// The values of State.MultiGPU.
const (
	MultiGPUNone          Feature = "none"
	MultiGPUProtectedPCIe Feature = "ppcie" // Hopper with switches
	MultiGPUNVLink        Feature = "nvle"  // Blackwell: the links are encrypted
)

// State is how confidential computing is set up, for all GPUs together.
type State struct {
	Mode     Feature `json:"mode"`
	MultiGPU Feature `json:"multi_gpu"`
	// Production is false for simulated environments.
	Production bool `json:"production"`
	// Ready tells whether the GPUs accept work.
	Ready bool `json:"ready"`
	// Driver is the driver's version.
	Driver string `json:"driver"`
}

// Failure says why there is no answer.
type Failure struct {
	Class   string `json:"class"`
	Message string `json:"message"`
}

var classes = map[string]error{
	"unavailable": errdefs.ErrUnavailable, "failed-precondition": errdefs.ErrFailedPrecondition, "not-implemented": errdefs.ErrNotImplemented,
	"invalid-argument": errdefs.ErrInvalidArgument, "permission-denied": errdefs.ErrPermissionDenied,
}

// maxMessage bounds the text of a Failure in bytes.
const maxMessage = 300

// NewFailure keeps the class of err, and of its text what can be shown anywhere.
func NewFailure(err error) *Failure {
	f := &Failure{Class: "unavailable", Message: plain(err.Error())}
	for name, class := range classes {
		if errors.Is(err, class) {
			f.Class = name
		}
	}
	return f
}

func (f *Failure) err() error {
	class, ok := classes[f.Class]
	if !ok {
		return errProtocol
	}
	return fmt.Errorf("%s: %w", plain(f.Message), class)
}

// plain cuts a text down to printable ASCII.
func plain(text string) string {
	text = strings.Map(func(r rune) rune {
		if r < 0x20 || r > 0x7e {
			return '?'
		}
		return r
	}, text)
	return text[:min(len(text), maxMessage)]
}

var (
	uuidPattern    = regexp.MustCompile(`^[A-Za-z0-9-]{1,64}$`)
	namePattern    = regexp.MustCompile(`^[A-Za-z0-9 ._()/+-]{1,96}$`)
	addressPattern = regexp.MustCompile(`^[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]$`)
	driverPattern  = regexp.MustCompile(`^[0-9.]{1,32}$`)
)

// checkGPUs refuses what no driver says: names go to logs and into files.
func checkGPUs(gpus []GPU) error {
	if len(gpus) > kbs.MaxNVIDIADevices {
		return errProtocol
	}
	seen := map[string]bool{}
	for i, g := range gpus {
		if g.Index != i || seen[g.UUID] || seen[g.Address] || !uuidPattern.MatchString(g.UUID) || !namePattern.MatchString(g.Name) || !addressPattern.MatchString(g.Address) {
			return errProtocol
		}
		seen[g.UUID], seen[g.Address] = true, true
	}
	return nil
}

func checkState(s State) error {
	switch s.Mode {
	case ModeOff, ModeOn, ModeDevTools:
	default:
		return errProtocol
	}
	switch s.MultiGPU {
	case MultiGPUNone, MultiGPUProtectedPCIe, MultiGPUNVLink:
	default:
		return errProtocol
	}
	if !driverPattern.MatchString(s.Driver) {
		return errProtocol
	}
	return nil
}

func checkEvidence(e *kbs.NVIDIAEvidence) error {
	if len(e.Devices) == 0 || len(e.Devices) > kbs.MaxNVIDIADevices {
		return errProtocol
	}
	for i := range e.Devices {
		d := &e.Devices[i]
		if d.Arch == "" || !uuidPattern.MatchString(d.UUID) {
			return errProtocol
		}
		if _, _, err := d.Decode(); err != nil {
			return errors.Join(errProtocol, err)
		}
	}
	return nil
}
