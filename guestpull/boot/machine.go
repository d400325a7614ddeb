package boot

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
)

// Machine is the booted guest. Its methods are safe for concurrent use.
type Machine struct {
	// Params is what the kernel command line asked for.
	Params Params

	// inherited is what another init has left behind.
	inherited inherited

	phases   phases
	modules  *loader
	loopback *background
	mounts   *background
	// startRest starts what Init leaves for later.
	startRest func()
	started   time.Time
}

// Init turns a bare initramfs into a working machine. It must be called once, by PID 1, before it has mounted or started
// anything. Another init may have been PID 1 before and become this program: what it has mounted is kept. What only containers need
// starts with Ready: see WaitComplete. Any error means that the machine is unfit for use; hand it to PowerOff.
func Init(ctx context.Context) (*Machine, error) {
	if pid := os.Getpid(); pid != 1 {
		return nil, fmt.Errorf("process %d is not the machine's init: %w", pid, errdefs.ErrFailedPrecondition)
	}
	world, err := lookAround()
	if err != nil {
		return nil, err
	}
	m := &Machine{inherited: world, started: time.Now(), loopback: newBackground(), mounts: newBackground()}
	uptime := sinceKernel()
	m.phases.add("kernel", uptime)
	sayf("pid 1 started %.3f s after the kernel", uptime.Seconds())

	steps := []struct {
		name string
		run  func(context.Context) error
	}{
		{"root", func(context.Context) error { return moveRoot(world) }},
		{"mounts", func(context.Context) error { return mountAll(baseMounts, world) }},
		{"inherited", func(context.Context) error { return world.settleIn() }},
		{"params", m.readParams},
		{"limits", func(context.Context) error { return setLimits() }},
		{"reaper", func(context.Context) error { return startReaper() }},
		{"transport_modules", m.loadTransport},
		{"entropy", waitEntropy},
		{"clock", func(ctx context.Context) error { return checkClock(ctx) }},
	}
	for _, step := range steps {
		begin := time.Now()
		if err := step.run(ctx); err != nil {
			return nil, fmt.Errorf("boot step %s: %w", step.name, err)
		}
		m.phases.add(step.name, time.Since(begin))
	}
	m.startRest = func() { m.startBackground(ctx) }
	return m, nil
}

// readParams reads the kernel command line and sets the log level that it asks for.
func (m *Machine) readParams(ctx context.Context) error {
	line, err := readLimited("/proc/cmdline", maxCmdline)
	if err != nil {
		return err
	}
	params, err := ParseParams(string(line))
	if err != nil {
		return err
	}
	m.Params = params
	setUpLog(params.LogLevel)
	for _, name := range params.Ignored {
		log.G(ctx).WithField("name", name).Warn("kernel parameter has no effect in this guest")
	}
	return nil
}

// Ready is to be called once the host can be answered. It writes the line on the console that says so, ends the timing
// of the boot, and starts what only containers need: on a machine with one processor, and that is the usual one, it would
// only be in the way before.
func (m *Machine) Ready() {
	elapsed := time.Since(m.started)
	m.phases.add("ready", elapsed)
	sayf("ready %d ms after pid 1 started", elapsed.Milliseconds())
	m.startRest()
}

// Phases returns how long each step of the boot took, in the order in which they ended. The phase "kernel" is the time
// from the kernel's start to PID 1's, "ready" the time from PID 1's start until Ready, both overlapping the steps.
func (m *Machine) Phases() []Phase { return m.phases.list() }

// AddPhase records a step that another part of the start-up took, for the boot report.
func (m *Machine) AddPhase(name string, took time.Duration) { m.phases.add(name, took) }

// Inherited tells whether another init has started the machine and become this program, as NVIDIA's does. It has done what an init
// does, the duties for GPUs included.
func (m *Machine) Inherited() bool { return m.inherited.byInit }

// PowerOff ends the machine and does not return. With a reason it is a fault: the reason is the last line on the console,
// where the shim finds it. Everything unsaved in guest memory is gone, as it should be.
func (m *Machine) PowerOff(reason error) { powerOff(reason) }
