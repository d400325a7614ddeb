package qemu

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/coffer-project/coffer/shim/transport"
	"github.com/coffer-project/coffer/shim/vm"
	"github.com/coffer-project/coffer/shim/vm/qemu/qmp"
)

const (
	// killTimeout bounds the end of a process after SIGKILL: what remains is the kernel's work.
	killTimeout = 10 * time.Second
	// verdictTimeout is how long Dial waits, when the channel broke, to learn that QEMU ended and why.
	verdictTimeout = 2 * time.Second
	// undoTimeout bounds a command that takes something back.
	undoTimeout = 10 * time.Second
)

type state int

const (
	stateNew state = iota
	stateStarting
	stateRunning
	stateEnded
)

func (s state) String() string { return [...]string{"new", "starting", "running", "ended"}[s] }

// Instance is one QEMU.
type Instance struct {
	options Options
	config  vm.Config
	machine machine
	vsock   bool
	console *lines
	done    chan struct{}

	mu      sync.Mutex
	state   state
	stop    bool  // Stop was called
	killed  bool  // and had to use force
	failure error // why Start gave QEMU up
	exit    vm.Exit
	process *process
	monitor *qmp.Client
	dialer  transport.Dialer
	slots   slots
}

var _ vm.Instance = (*Instance)(nil)

// Start implements vm.Instance.
func (i *Instance) Start(ctx context.Context) (retErr error) {
	i.mu.Lock()
	if i.state != stateNew {
		defer i.mu.Unlock()
		return fmt.Errorf("start vm %s: %w: it is %s", i.config.ID, errdefs.ErrFailedPrecondition, i.state)
	}
	i.state = stateStarting
	i.mu.Unlock()

	defer func() {
		if retErr != nil {
			retErr = fmt.Errorf("start vm %s: %w", i.config.ID, retErr)
		}
	}()
	p, wires, err := i.spawn(ctx)
	if err != nil {
		i.finish(vm.Exit{At: time.Now(), Requested: i.stopping(), Err: err})
		return err
	}
	if err := i.meet(ctx, p, wires); err != nil {
		return i.giveUp(ctx, p, err)
	}
	return nil
}

// giveUp ends a QEMU that did not answer because of err. When QEMU ended by itself, why it did is why it did not answer.
func (i *Instance) giveUp(ctx context.Context, p *process, err error) error {
	if errdefs.IsUnavailable(err) {
		i.awaitVerdict(ctx)
	}
	select {
	case <-i.done:
	default:
		if words := p.stderr.last(stderrLines); len(words) > 0 {
			err = fmt.Errorf("%w; QEMU said: %s", err, quote(words))
		}
		i.mu.Lock()
		i.failure = err
		i.mu.Unlock()
		p.kill()
		<-i.done
	}
	if exit := i.Exit(); exit.Err != nil {
		return exit.Err
	}
	return fmt.Errorf("%w: it was stopped", errdefs.ErrUnavailable)
}

// spawn makes the wires, starts QEMU and takes on its care: from here on its end closes done.
func (i *Instance) spawn(ctx context.Context) (_ *process, _ *wires, retErr error) {
	defer closeFiles(i.config) // QEMU has its own copies, or will never need them
	w, err := newWires(i.vsock)
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		w.closeTheirs()
		if retErr != nil {
			w.closeOurs()
		}
	}()
	m, files := i.machine.wire(i.config, i.vsock, w)
	cpus, err := processors(m.placement)
	if err != nil {
		return nil, nil, err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.stop {
		return nil, nil, fmt.Errorf("%w: it was stopped", errdefs.ErrUnavailable)
	}
	p, err := spawn(i.options.Binary, arguments(m), spawnOptions{netNS: i.config.NetNS, files: files, cpus: cpus})
	if err != nil {
		return nil, nil, err
	}
	i.process, i.dialer = p, w.dialer
	i.console.each = func(line string) { log.G(ctx).WithField("line", line).Debug("guest console") }
	consoleRead := make(chan struct{})
	go func() { defer close(consoleRead); i.console.readFrom(w.console) }()
	go i.attend(p, w, consoleRead)
	return p, w, nil
}

// meet records the process and waits for QEMU to answer.
func (i *Instance) meet(ctx context.Context, p *process, w *wires) error {
	r, err := recordOf(p.pid())
	if err == nil {
		err = r.write(i.config.StateDir)
	}
	if err != nil && p.ended() {
		err = nil // there is nothing to record; why it ended is told below
	}
	if err != nil {
		w.events <- nil
		return fmt.Errorf("record qemu: %w", err)
	}
	monitor, err := qmp.New(ctx, w.qmp)
	w.events <- monitor
	if err != nil {
		return fmt.Errorf("QEMU does not answer: %w", err)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.state == stateStarting {
		i.state, i.monitor = stateRunning, monitor
	}
	return nil
}

// attend waits for the end of QEMU, finds out why it ended and releases everything.
func (i *Instance) attend(p *process, w *wires, consoleRead <-chan struct{}) {
	var end ending
	if monitor := <-w.events; monitor != nil {
		for event := range monitor.Events() {
			end.take(event)
			i.slots.take(event)
		}
	}
	<-p.done
	// The console's last lines are still in the socket.
	_ = w.console.SetReadDeadline(time.Now().Add(outputDelay))
	<-consoleRead
	w.closeOurs()
	exit := vm.Exit{At: time.Now()}
	i.mu.Lock()
	exit.Requested = i.stop
	switch {
	case i.failure != nil:
		exit.Err = i.failure
	case i.killed:
		exit.Err = fmt.Errorf("QEMU did not end within %s when asked to and was killed", i.options.ShutdownGrace)
	case !i.stop:
		exit.Err = end.explain(p, i.console)
	}
	i.mu.Unlock()
	i.finish(exit)
}

// finish is the one way into the ended state.
func (i *Instance) finish(exit vm.Exit) {
	os.Remove(filepath.Join(i.config.StateDir, stateFile))
	closeFiles(i.config)
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.state == stateEnded {
		return
	}
	i.state, i.exit = stateEnded, exit
	i.console.end()
	close(i.done)
}

func (i *Instance) stopping() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.stop
}

// Dial implements vm.Instance.
func (i *Instance) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	i.mu.Lock()
	state, dialer := i.state, i.dialer
	i.mu.Unlock()
	if state == stateEnded {
		return nil, i.gone(port)
	}
	if dialer == nil {
		return nil, fmt.Errorf("dial vm %s: %w: it is %s", i.config.ID, errdefs.ErrFailedPrecondition, state)
	}
	alive, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-i.done:
			cancel()
		case <-alive.Done():
		}
	}()
	conn, err := dialer.Dial(alive, port)
	if err == nil {
		return conn, nil
	}
	if errdefs.IsUnavailable(err) && ctx.Err() == nil {
		i.awaitVerdict(ctx)
	}
	select {
	case <-i.done:
		return nil, i.gone(port)
	default:
	}
	err = fmt.Errorf("dial vm %s: %w", i.config.ID, err)
	if said := i.console.telling(quotedLines); len(said) > 0 {
		err = fmt.Errorf("%w; last console lines: %s", err, quote(said))
	}
	return nil, err
}

// awaitVerdict waits a moment for QEMU's end: its sockets break before it can be reaped.
func (i *Instance) awaitVerdict(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, verdictTimeout)
	defer cancel()
	select {
	case <-i.done:
	case <-ctx.Done():
	}
}

func (i *Instance) gone(port uint32) error {
	reason := i.Exit().Err
	if reason == nil {
		reason = errors.New("it was stopped")
	}
	return fmt.Errorf("dial vm %s port %d: %w: %w", i.config.ID, port, errdefs.ErrUnavailable, reason)
}

// Accelerator tells how guest code runs: kvm or tcg. It is for reports.
func (i *Instance) Accelerator() string { return string(i.machine.accelerator) }

// PID implements vm.Instance.
func (i *Instance) PID() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.process == nil {
		return 0
	}
	return i.process.pid()
}

// Done implements vm.Instance.
func (i *Instance) Done() <-chan struct{} { return i.done }

// Exit implements vm.Instance.
func (i *Instance) Exit() vm.Exit {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.exit
}

// ConsoleFrom implements vm.Instance.
func (i *Instance) ConsoleFrom(ctx context.Context, from uint64) ([]string, uint64, error) {
	return i.console.from(ctx, from)
}

// Console implements vm.Instance.
func (i *Instance) Console() []string { return i.console.last(i.options.ConsoleLines) }
