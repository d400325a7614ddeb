package gpu

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coffer-project/coffer/guestpull/attest"
	"github.com/coffer-project/coffer/guestpull/extension"
	"github.com/coffer-project/coffer/guestpull/gpu/cdi"
)

// State is what the driver says of confidential computing on the guest's GPUs.
type State struct {
	// Confidential: the GPUs protect what they work on from the host, and do nothing before they are ready.
	Confidential bool
	// Ready: they accept work.
	Ready bool
}

// Driver speaks with NVIDIA's driver.
type Driver interface {
	// State asks for it. NotImplemented: neither driver nor GPUs know confidential computing.
	State(ctx context.Context) (State, error)
	// SetReady lets the GPUs accept work.
	SetReady(ctx context.Context) error
}

// Attester proves to the key broker what this guest is, all its GPUs included. It succeeds only if the broker believes it; package kbs's
// Client is one.
type Attester interface {
	Attest(ctx context.Context) error
}

// Options say what the duties are done with. Root, Start, Insert and MakeNode are needed.
type Options struct {
	// Root is the guest's, "/".
	Root string
	// Start starts programs, Insert and MakeNode are the kernel's calls.
	Start    Start
	Insert   Insert
	MakeNode MakeNode
	// Kernel is the release of the running kernel, for which modules must be.
	Kernel string
	// Params are from the kernel command line.
	Params Params
	// Extensions are those that are mounted.
	Extensions []*extension.Extension
	// Driver is nil where nothing can ask the driver; GPUs that do confidential computing stay not ready then.
	Driver Driver
	// Evidence returns what gathers the evidence of that many GPUs. It is needed with Driver.
	Evidence func(gpus int) attest.DeviceAttester
	// Inherited: another init has done the duties up to the CDI specification, as NVIDIA's does.
	Inherited bool
}

// Service does the duties and gives containers GPUs. It is safe for concurrent use.
type Service struct {
	// patience is how long a container waits for the duties.
	patience time.Duration
	health   *health

	once   sync.Once     // ends the duties
	done   chan struct{} // closed when they are over
	result result        // valid once done is closed

	known chan struct{} // closed by AttestBy
	// Valid once known is closed.
	attester    Attester
	unprotected error

	turn  chan struct{} // to attest; one at a time
	ready bool          // belongs to who has the turn
}

// result is what the duties have led to.
type result struct {
	err          error // why there are no GPUs
	topology     Topology
	confidential bool
	options      Options
	registry     *cdi.Registry
}

// New returns a service whose containers wait at most patience for GPUs. Call Run and AttestBy, or Refuse.
func New(patience time.Duration) *Service {
	return &Service{
		patience: patience, health: newHealth(), done: make(chan struct{}), known: make(chan struct{}), turn: make(chan struct{}, 1),
	}
}

func (s *Service) end(r result) {
	s.once.Do(func() {
		s.result = r
		s.health.set(r.topology, r.err)
		close(s.done)
	})
}

// Refuse lets containers that ask for GPUs fail with the error, unless the duties are over.
func (s *Service) Refuse(err error) { s.end(result{err: err}) }

// AttestBy tells who attests the guest before its GPUs may work; nil where the measured document names no key broker. unprotected is why
// GPUs that do no confidential computing must not be used; nil where they may. Call it once.
func (s *Service) AttestBy(a Attester, unprotected error) {
	s.attester, s.unprotected = a, unprotected
	close(s.known)
}

// Run does the duties up to the attestation, which waits for the first container with a GPU: the guest has a network by then. What fails
// is logged, counted and told to containers that ask for GPUs.
func (s *Service) Run(ctx context.Context, o Options) {
	begin := time.Now()
	r := result{options: o}
	r.err = r.setUp(ctx, s.health)
	switch {
	case r.err != nil:
		log.G(ctx).WithError(r.err).Error("GPUs cannot be used")
	case r.topology.Mode != ModeNone:
		log.G(ctx).WithField("devices", r.registry.Names()).WithField("confidential", r.confidential).WithField("t_gpu", time.Since(begin)).Info("GPUs are set up")
	}
	s.end(r)
}

// Devices waits for the duties and returns what gathers the evidence of the GPUs: each attestation of this guest must have it. It is
// empty in a guest whose GPUs do no confidential computing or cannot be used.
func (s *Service) Devices(ctx context.Context) ([]attest.DeviceAttester, error) {
	select {
	case <-s.done:
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for GPUs: %w", ctx.Err())
	}
	if s.result.err != nil || !s.result.confidential {
		return nil, nil
	}
	return []attest.DeviceAttester{s.result.options.Evidence(s.result.topology.GPUs)}, nil
}

func (r *result) setUp(ctx context.Context, h *health) (err error) {
	o := r.options
	if r.topology, err = Detect(o.devices()); err != nil {
		return fmt.Errorf("GPU duty topology: %w", err)
	}
	if t := r.topology; t.Mode != ModeNone {
		log.G(ctx).WithFields(log.Fields{"mode": t.Mode, "gpus": t.GPUs, "switches": t.Switches, "bridges": t.Bridges}).Info("GPUs are being set up")
		if err := newDuties(o, t, h).run(ctx); err != nil {
			return err
		}
	}
	if r.topology.GPUs > 0 {
		if r.confidential, err = confidential(ctx, o.Driver); err != nil {
			return fmt.Errorf("GPU duty mode: %w", err)
		}
	}
	r.registry, err = cdi.Read(o.specifications(), cdi.ForDriver(o.place().dir()))
	return err
}

// confidential asks whether the GPUs do confidential computing.
func confidential(ctx context.Context, d Driver) (bool, error) {
	if d == nil {
		log.G(ctx).Warn("nothing in this guest can ask the GPU driver: the GPUs' ready state stays as it is")
		return false, nil
	}
	state, err := d.State(ctx)
	if errdefs.IsNotImplemented(err) || err == nil && !state.Confidential {
		log.G(ctx).Warn("GPUs do no confidential computing: the host can read what they work on")
		return false, nil
	}
	return err == nil, err
}

// Inject waits for the duties, has the guest attested if it is not yet, and gives a container the devices. FailedPrecondition, Unavailable:
// a duty or the attestation has failed; the latter is tried again with the next container. NotFound: the guest has no such device.
// DeadlineExceeded: the duties are not done in time.
func (s *Service) Inject(ctx context.Context, to *specs.Spec, names []string) error {
	late := time.NewTimer(s.patience)
	defer late.Stop()
	select {
	case <-s.done:
	case <-late.C:
		return fmt.Errorf("devices %q: GPUs are not set up within %s (kernel parameter agent.cdi_timeout): %w", names, s.patience, context.DeadlineExceeded)
	case <-ctx.Done():
		return fmt.Errorf("wait for devices %q: %w", names, ctx.Err())
	}
	if s.result.err != nil {
		return fmt.Errorf("devices %q: %w", names, s.result.err)
	}
	if err := s.makeReady(ctx); err != nil {
		return fmt.Errorf("devices %q: GPU duty attestation: %w", names, err)
	}
	return s.result.registry.Inject(to, names)
}

// errNoBroker is of a guest whose GPUs nobody can attest.
var errNoBroker = fmt.Errorf("the GPUs do confidential computing and stay locked until they are attested, but the measured document names no key broker: %w", errdefs.ErrFailedPrecondition)

// makeReady attests the guest, and only then lets the GPUs work. Once is enough. GPUs that do no confidential computing have no such state,
// and a broker never hears of them: whether the guest's secrets may get to them, the measured document alone says.
func (s *Service) makeReady(ctx context.Context) error {
	select {
	case <-s.known:
	case <-ctx.Done():
		return ctx.Err()
	}
	if !s.result.confidential {
		return s.unprotected
	}
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if s.ready {
		return nil
	}
	if s.attester == nil {
		return errNoBroker
	}
	if err := s.attester.Attest(ctx); err != nil {
		return fmt.Errorf("the key broker has not accepted this guest with its GPUs: %w", err)
	}
	if err := s.result.options.Driver.SetReady(ctx); err != nil {
		return err
	}
	s.ready = true
	log.G(ctx).Info("guest and GPUs are attested, GPUs accept work")
	return nil
}

// Figures reports the GPUs' health, each figure by its name with labels.
func (s *Service) Figures(gauge func(name, value string)) { s.health.figures(gauge) }

// place is where the driver's files are.
func (o Options) place() place {
	p := place{root: o.Root}
	for _, e := range o.Extensions {
		if e.Name == ExtensionName {
			p.extension = e
		}
	}
	return p
}
