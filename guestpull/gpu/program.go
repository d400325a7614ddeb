package gpu

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"
)

// Start starts a program that somebody else waits for, as PID 1 must do for all: see reap.Table.
type Start func(cmd *exec.Cmd) (pid int, exit <-chan int, err error)

// Limits of what a program may say. What is beyond is passed over.
const (
	maxLine  = 1024 // bytes of one line
	maxLines = 4096 // of one program, in the log
)

// drainTime is how long a program that has ended may leave its output open: daemons that it started may hold it.
const drainTime = time.Second

// programs runs NVIDIA's programs.
type programs struct {
	start Start
	// verbose: what they print is worth the attention of an admin.
	verbose bool
	// heard gets each line that a program prints, for those who wait for one.
	heard *hearing
}

// running is a program that was started.
type running struct {
	name string
	pid  int
	exit <-chan int
	out  *os.File
	// drained is closed when all that it said was read.
	drained chan struct{}

	mu   sync.Mutex
	last string // non-empty line
}

// launch starts a program in a process group of its own. Its environment holds nothing of this process's.
func (p *programs) launch(ctx context.Context, path string, args ...string) (_ *running, retErr error) {
	out, in, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer func() { retErr = errors.Join(retErr, in.Close()) }()
	cmd := exec.Command(path, args...)
	cmd.Dir, cmd.Env = "/", []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/tmp", "LC_ALL=C"}
	cmd.Stdout, cmd.Stderr = in, in
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	r := &running{name: filepath.Base(path), out: out, drained: make(chan struct{})}
	if r.pid, r.exit, err = p.start(cmd); err != nil {
		class := error(errdefs.ErrUnavailable)
		if errors.Is(err, os.ErrNotExist) {
			class = errdefs.ErrNotFound // the program, or the loader that it names
		}
		return nil, errors.Join(fmt.Errorf("%s cannot be started: %w: %w", path, err, class), out.Close())
	}
	log.G(ctx).WithField("program", path).WithField("args", strings.Join(args, " ")).Debug("GPU program started")
	go p.listen(ctx, r)
	return r, nil
}

// listen reads what the program says until nobody can say more.
func (p *programs) listen(ctx context.Context, r *running) {
	defer close(r.drained)
	defer r.out.Close()
	entry := log.G(ctx).WithField("program", r.name)
	lines := bufio.NewReaderSize(r.out, maxLine)
	for n := 0; ; n++ {
		part, more, err := lines.ReadLine()
		text := strings.TrimSpace(strings.ToValidUTF8(string(part), "?"))
		for more && err == nil { // the rest of a line that is too long
			_, more, err = lines.ReadLine()
		}
		if text != "" {
			r.say(text)
			p.heard.say(text)
			switch {
			case n > maxLines:
			case p.verbose:
				entry.Info(text)
			default:
				entry.Debug(text)
			}
		}
		if err != nil {
			return // it has ended, or nobody listens any more
		}
	}
}

func (r *running) say(line string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last = line
}

// kill ends the program and all that it has started, unless it left the group.
func (r *running) kill() { _ = unix.Kill(-r.pid, unix.SIGKILL) } // it may be gone

// ended is the error of a program that has ended with a status other than 0, which quotes its last line.
func (r *running) ended(status int) error {
	_ = r.out.SetReadDeadline(time.Now().Add(drainTime)) // closed already: drained
	<-r.drained
	if status == 0 {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	how := fmt.Sprintf("%s ended with status %d", r.name, status)
	if status > 128 {
		how = fmt.Sprintf("%s was ended by signal %d", r.name, status-128)
	}
	if r.last == "" {
		return fmt.Errorf("%s and said nothing: %w", how, errdefs.ErrUnavailable)
	}
	return fmt.Errorf("%s: %q: %w", how, r.last, errdefs.ErrUnavailable)
}

// run runs a program to its end, which it must find within limit.
func (p *programs) run(ctx context.Context, limit time.Duration, path string, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	r, err := p.launch(ctx, path, args...)
	if err != nil {
		return err
	}
	select {
	case status := <-r.exit:
		return r.ended(status)
	case <-ctx.Done():
		r.kill()
		<-r.exit
		_ = r.ended(0)
		return fmt.Errorf("%s has not ended within %s: %w", r.name, limit, ctx.Err())
	}
}

// hearing lets parts wait until a program says something.
type hearing struct {
	mu    sync.Mutex
	waits map[*wait]bool
}

type wait struct {
	marker string
	heard  chan struct{}
}

func newHearing() *hearing { return &hearing{waits: map[*wait]bool{}} }

// say passes a line on.
func (h *hearing) say(line string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for w := range h.waits {
		if strings.Contains(line, w.marker) {
			close(w.heard)
			delete(h.waits, w)
		}
	}
}

// expect starts to wait for a line with the marker. The channel is closed when it comes; call forget in any case.
func (h *hearing) expect(marker string) (heard <-chan struct{}, forget func()) {
	w := &wait{marker: marker, heard: make(chan struct{})}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.waits[w] = true
	return w.heard, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.waits, w)
	}
}

// hearFrom takes lines from a stream of datagrams, as programs send them to the system's log, until it is closed.
func (h *hearing) hearFrom(ctx context.Context, conn io.Reader) {
	buf := make([]byte, 4*maxLine)
	for n := 0; ; n++ {
		size, err := conn.Read(buf)
		if err != nil {
			return
		}
		_, text, _ := strings.Cut(strings.ToValidUTF8(string(buf[:size]), "?"), ">") // after the priority
		text = strings.TrimSpace(text)
		h.say(text)
		if n < maxLines {
			log.G(ctx).Debug("system log: " + text)
		}
	}
}
