// Package reap ties exits of child processes to those who started them.
//
// The agent is PID 1 (or a subreaper): every orphan of every container becomes its child, and one loop must wait for all of
// them. Container processes are started by runc, which exits before they do, so their exit may be seen before their pid is
// known. A [Flight] closes that gap: exits that happen while it is open are kept until the pid is claimed.
package reap

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"sync"

	"github.com/containerd/containerd/v2/pkg/sys/reaper"
	runc "github.com/containerd/go-runc"
	"golang.org/x/sys/unix"
)

// Serve waits for children for the process's whole life: it makes this process a subreaper, installs the monitor that go-runc
// uses, and reaps until ctx ends. Call it once; it returns when the loop is ready.
func Serve(ctx context.Context) error {
	if os.Getpid() != 1 {
		if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
			return fmt.Errorf("become the reaper of orphaned processes: %w", err)
		}
	}
	runc.Monitor = reaper.Default
	// One pending signal is enough: a loop over all exited children follows each of them.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGCHLD)
	go func() {
		defer signal.Stop(signals)
		for {
			select {
			case <-signals:
				_ = reaper.Reap()
			case <-ctx.Done():
				return
			}
		}
	}()
	return nil
}

// Table hands each exit to its claimant.
type Table struct {
	events chan runc.Exit
	done   chan struct{}

	mu      sync.Mutex
	waiting map[int]chan int
	flights map[*Flight]struct{}
}

// New returns a table that listens to the process-wide monitor until Close.
func New() *Table {
	t := &Table{
		events:  reaper.Default.Subscribe(),
		done:    make(chan struct{}),
		waiting: make(map[int]chan int),
		flights: make(map[*Flight]struct{}),
	}
	go t.loop()
	return t
}

func (t *Table) loop() {
	defer close(t.done)
	for e := range t.events {
		t.exit(e.Pid, e.Status)
	}
}

func (t *Table) exit(pid, status int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if ch, ok := t.waiting[pid]; ok {
		delete(t.waiting, pid)
		ch <- status // buffered
		return
	}
	for f := range t.flights {
		f.seen[pid] = status
	}
}

// Close ends the subscription and waits for the loop.
func (t *Table) Close() {
	reaper.Default.Unsubscribe(t.events)
	<-t.done
}

// Begin opens a flight: call it before a process is started, and End when its pid is claimed or will never be known.
func (t *Table) Begin() *Flight {
	t.mu.Lock()
	defer t.mu.Unlock()
	f := &Flight{table: t, seen: make(map[int]int)}
	t.flights[f] = struct{}{}
	return f
}

// Flight remembers the exits since Begin.
type Flight struct {
	table *Table
	seen  map[int]int
}

// Claim returns the channel that gets the exit status of pid once: the code, or 128 plus the number of the fatal signal.
func (f *Flight) Claim(pid int) <-chan int {
	f.table.mu.Lock()
	defer f.table.mu.Unlock()
	ch := make(chan int, 1)
	if status, ok := f.seen[pid]; ok {
		ch <- status
		return ch
	}
	f.table.waiting[pid] = ch
	return ch
}

// End forgets the flight.
func (f *Flight) End() {
	f.table.mu.Lock()
	defer f.table.mu.Unlock()
	delete(f.table.flights, f)
}

// Start starts cmd, which must not be waited for by other means, and returns its pid and the channel of its exit status.
func (t *Table) Start(cmd *exec.Cmd) (int, <-chan int, error) {
	flight := t.Begin()
	defer flight.End()
	if err := cmd.Start(); err != nil {
		return 0, nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	pid := cmd.Process.Pid
	exit := flight.Claim(pid)
	// The reaper waits; the handle would only hold a descriptor open.
	_ = cmd.Process.Release()
	return pid, exit, nil
}
