package gpu

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	specs "github.com/opencontainers/runtime-spec/specs-go"

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

// Attester proves to the key broker what this guest is, all its GPUs included. It succeeds only if the broker believes it.
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
	// Attester is nil where the measured document names no key broker.
	Attester Attester
	// Inherited: another init has done the duties up to the CDI specification, as NVIDIA's does.
	Inherited bool
}

// Service does the duties and gives containers GPUs. It is safe for concurrent use.
type Service struct {
	// patience is how long a container waits for the duties.
	patience time.Duration
	health   *health

	done     chan struct{} // closed when the duties are over
	err      error         // why there are no GPUs; valid once done is closed
	registry *cdi.Registry // likewise
	options  Options       // likewise
	mode     Mode          // likewise

	turn  chan struct{} // to attest; one at a time
	ready bool          // belongs to who has the turn
}

// New returns a service whose containers wait at most patience for GPUs. Call Run or Refuse once.
func New(patience time.Duration) *Service {
	return &Service{patience: patience, health: newHealth(), done: make(chan struct{}), turn: make(chan struct{}, 1)}
}

// Refuse lets containers that ask for GPUs fail with the error.
func (s *Service) Refuse(err error) {
	s.err = err
	s.health.set(Topology{}, err)
	close(s.done)
}

// Run does the duties up to the attestation, which waits for the first container with a GPU: the guest has a network by then. What fails
// is logged, counted and told to containers that ask for GPUs.
func (s *Service) Run(ctx context.Context, o Options) {
	defer close(s.done)
	begin := time.Now()
	topology, err := s.setUp(ctx, o)
	s.options, s.mode, s.err = o, topology.Mode, err
	s.health.set(topology, err)
	switch {
	case err != nil:
		log.G(ctx).WithError(err).Error("GPUs cannot be used")
	case topology.Mode != ModeNone:
		log.G(ctx).WithField("devices", s.registry.Names()).WithField("t_gpu", time.Since(begin)).Info("GPUs are set up")
	}
}

func (s *Service) setUp(ctx context.Context, o Options) (Topology, error) {
	topology, err := Detect(o.devices())
	if err != nil {
		return topology, fmt.Errorf("GPU duty topology: %w", err)
	}
	if topology.Mode != ModeNone {
		log.G(ctx).WithFields(log.Fields{"mode": topology.Mode, "gpus": topology.GPUs, "switches": topology.Switches, "bridges": topology.Bridges}).Info("GPUs are being set up")
		if err := newDuties(o, topology, s.health).run(ctx); err != nil {
			return topology, err
		}
	}
	s.registry, err = cdi.Read(o.specifications(), cdi.ForDriver(o.place().dir()))
	return topology, err
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
	if s.err != nil {
		return fmt.Errorf("devices %q: %w", names, s.err)
	}
	if err := s.makeReady(ctx); err != nil {
		return fmt.Errorf("devices %q: GPU duty attestation: %w", names, err)
	}
	return s.registry.Inject(to, names)
}

// makeReady attests the guest, and only then lets the GPUs work. Once is enough.
func (s *Service) makeReady(ctx context.Context) error {
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if s.ready || s.mode == ModeNone { // without GPUs there is nothing of NVIDIA's to give, whatever the specifications say
		return nil
	}
	if err := makeReady(ctx, s.options); err != nil {
		return err
	}
	s.ready = true
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

// errNoBroker is of a guest whose GPUs nobody can attest.
var errNoBroker = fmt.Errorf("the GPUs do confidential computing and stay locked until they are attested, but the measured document names no key broker: %w", errdefs.ErrFailedPrecondition)

// makeReady attests the guest and lets the GPUs work, in this order.
func makeReady(ctx context.Context, o Options) error {
	if o.Driver == nil {
		log.G(ctx).Warn("nothing in this guest can ask the GPU driver: the GPUs' ready state stays as it is")
		return nil
	}
	state, err := o.Driver.State(ctx)
	if errdefs.IsNotImplemented(err) || err == nil && !state.Confidential {
		log.G(ctx).Warn("GPUs do no confidential computing: the host can read what they work on")
		return nil
	}
	switch {
	case err != nil:
		return err
	case o.Attester == nil:
		return errNoBroker
	}
	if err := o.Attester.Attest(ctx); err != nil {
		return fmt.Errorf("the key broker has not accepted this guest with its GPUs: %w", err)
	}
	if err := o.Driver.SetReady(ctx); err != nil {
		return err
	}
	log.G(ctx).Info("guest and GPUs are attested, GPUs accept work")
	return nil
}
