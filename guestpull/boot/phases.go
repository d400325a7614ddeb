package boot

import (
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Phase is one measured step of the boot.
type Phase struct {
	Name string
	Took time.Duration
}

// phases collects measured steps from several goroutines.
type phases struct {
	mu   sync.Mutex
	done []Phase
}

func (p *phases) add(name string, took time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done = append(p.done, Phase{Name: name, Took: took})
}

func (p *phases) list() []Phase {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]Phase(nil), p.done...)
}

// sinceKernel is the time since the kernel started; 0 where the clock cannot be read, which costs only a figure.
func sinceKernel() time.Duration {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return 0
	}
	return time.Duration(now.Nano())
}
