// Package helper is the program coffer-gpu-evidence without NVIDIA's library: it reads one question of package nvgpu, has a Library answer
// it, writes the answer, and ends. It holds no state and knows nothing of key brokers; what it says is no secret.
package helper

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/guestpull/attest/nvgpu"
	"github.com/coffer-project/coffer/proto/kbs"
)

// Library is the driver's interface. Errors have the classes that the methods of nvgpu.Client name.
type Library interface {
	// GPUs lists the GPUs.
	GPUs() ([]nvgpu.GPU, error)
	// State tells how confidential computing is set up.
	State() (nvgpu.State, error)
	// Report returns a GPU's report on the nonce and its certificate chain in PEM.
	Report(g nvgpu.GPU, nonce [kbs.NVIDIANonce]byte) (report, chain []byte, err error)
	// SetReady lets the GPUs accept work, or no longer.
	SetReady(ready bool) error
}

// Main answers the one question on in. open is called once the question is known to be one; its second result closes the library. It
// returns the exit status: 0 if an answer was written, even where it is a failure.
func Main(in io.Reader, out io.Writer, open func() (Library, func() error, error)) int {
	answer, err := serve(in, open)
	if err != nil {
		answer = &nvgpu.Answer{Failure: nvgpu.NewFailure(err)}
	}
	answer.Version = nvgpu.Version
	line, err := json.Marshal(answer)
	if err != nil {
		return 1
	}
	if _, err := out.Write(append(line, '\n')); err != nil {
		return 1
	}
	return 0
}

func serve(in io.Reader, open func() (Library, func() error, error)) (_ *nvgpu.Answer, retErr error) {
	line, err := bufio.NewReader(io.LimitReader(in, nvgpu.MaxQuestion)).ReadBytes('\n')
	if err != nil {
		return nil, fmt.Errorf("question is not one line of at most %d bytes: %w", nvgpu.MaxQuestion, errdefs.ErrInvalidArgument)
	}
	var q nvgpu.Question
	if err := kbs.DecodeStrict(line, nvgpu.MaxQuestion, &q); err != nil {
		return nil, err
	}
	if q.Version != nvgpu.Version {
		return nil, fmt.Errorf("question is of version %d, this program answers those of version %d: %w", q.Version, nvgpu.Version, errdefs.ErrInvalidArgument)
	}
	if hasNonce := len(q.Nonce) == kbs.NVIDIANonce; hasNonce != (q.Op == nvgpu.OpEvidence) || !hasNonce && len(q.Nonce) > 0 || q.Ready && q.Op != nvgpu.OpSetReady {
		return nil, fmt.Errorf("question has members that do not belong to it, or lacks one: %w", errdefs.ErrInvalidArgument)
	}
	switch q.Op {
	case nvgpu.OpGPUs, nvgpu.OpState, nvgpu.OpEvidence, nvgpu.OpSetReady:
	default:
		return nil, fmt.Errorf("unknown question: %w", errdefs.ErrNotImplemented)
	}
	library, shut, err := open()
	if err != nil {
		return nil, err
	}
	defer func() { retErr = errors.Join(retErr, shut()) }()
	return ask(library, &q)
}

func ask(library Library, q *nvgpu.Question) (*nvgpu.Answer, error) {
	switch q.Op {
	case nvgpu.OpGPUs:
		gpus, err := library.GPUs()
		return &nvgpu.Answer{GPUs: &gpus}, err
	case nvgpu.OpState:
		state, err := library.State()
		return &nvgpu.Answer{State: &state}, err
	case nvgpu.OpEvidence:
		evidence, err := collect(library, [kbs.NVIDIANonce]byte(q.Nonce))
		return &nvgpu.Answer{Evidence: evidence}, err
	default:
		return &nvgpu.Answer{Done: true}, library.SetReady(q.Ready)
	}
}

// collect asks one GPU after the other: each report keeps the GPU's security processor busy, and drivers let one through at a time.
func collect(library Library, nonce [kbs.NVIDIANonce]byte) (*kbs.NVIDIAEvidence, error) {
	state, err := library.State()
	if err != nil {
		return nil, err
	}
	switch {
	case state.MultiGPU == nvgpu.MultiGPUProtectedPCIe:
		// No verifier may believe such GPUs without their switches.
		return nil, fmt.Errorf("GPUs are set up to trust their NVSwitches (PPCIE), whose evidence comes from NVIDIA's library NSCQ, which is not supported: %w", errdefs.ErrNotImplemented)
	case state.Mode == nvgpu.ModeOff && state.MultiGPU == nvgpu.MultiGPUNone:
		return nil, fmt.Errorf("confidential computing is off on the GPUs, so they have no evidence: set cc.mode of the node to on: %w", errdefs.ErrFailedPrecondition)
	}
	gpus, err := library.GPUs()
	if err != nil {
		return nil, err
	}
	if len(gpus) == 0 || len(gpus) > kbs.MaxNVIDIADevices {
		return nil, fmt.Errorf("driver has %d GPUs, not 1 to %d: %w", len(gpus), kbs.MaxNVIDIADevices, errdefs.ErrFailedPrecondition)
	}
	evidence := &kbs.NVIDIAEvidence{}
	for _, g := range gpus {
		if g.Arch == "" {
			return nil, fmt.Errorf("GPU %d (%s) is of a generation that cannot attest: %w", g.Index, g.Name, errdefs.ErrNotImplemented)
		}
		report, chain, err := library.Report(g, nonce)
		if err != nil {
			return nil, fmt.Errorf("GPU %d (%s): %w", g.Index, g.Name, err)
		}
		device, err := kbs.NewNVIDIADevice(g.Arch, g.UUID, report, chain)
		if err != nil {
			return nil, fmt.Errorf("GPU %d (%s): %w", g.Index, g.Name, err)
		}
		evidence.Devices = append(evidence.Devices, device)
	}
	return evidence, nil
}
