package task

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// stallAfter is how long a client may leave a full FIFO unread before the process counts as stalled: its exit is then
// reported although output is left.
const stallAfter = 2 * time.Second

// paths are a process's stdio as the client names it: FIFOs, or URIs of files and logger programs for output. Empty means
// none.
type paths struct {
	stdin, stdout, stderr string
	terminal              bool
}

// stdio is the host's side of a process's streams.
type stdio struct {
	paths  paths
	stdout *output
	stderr *output
	logger *logger // takes both outputs; nil without one

	closing sync.Once

	mu     sync.Mutex
	stdin  *os.File // what the copy to the guest reads; nil without stdin
	keeper *os.File // a writer that keeps stdin open while no client is attached, until CloseIO
}

// openStdio opens what the client prepared, and starts the logger program that it names, which is told the process's id. A
// failure leaves nothing open.
func openStdio(ctx context.Context, p paths, id string) (_ *stdio, retErr error) {
	s := &stdio{paths: p}
	defer func() {
		if retErr != nil {
			s.close()
			s.wait()
		}
	}()
	if p.terminal && p.stderr != "" {
		// A terminal has one output stream.
		p.stderr = ""
	}
	if err := s.openOutputs(ctx, p, id); err != nil {
		return nil, err
	}
	if p.stdin != "" {
		if err := s.openStdin(p.stdin); err != nil {
			return nil, fmt.Errorf("open stdin: %w", err)
		}
	}
	return s, nil
}

// openOutputs opens both outputs. One logger program takes both, as the client asks for it: by the same URI twice, or by
// one for standard output alone.
func (s *stdio) openOutputs(ctx context.Context, p paths, id string) (err error) {
	if isLogger(p.stderr) && p.stderr != p.stdout {
		return fmt.Errorf("open stderr: a logger program takes both outputs, name it for stdout too: %w", errdefs.ErrInvalidArgument)
	}
	if isLogger(p.stdout) {
		namespace, err := namespaces.NamespaceRequired(ctx)
		if err != nil {
			return err
		}
		if s.logger, err = startLogger(ctx, p.stdout, namespace, id); err != nil {
			return fmt.Errorf("open stdout: %w", err)
		}
		s.stdout = newOutput(s.logger.stdout)
		if isLogger(p.stderr) {
			s.stderr = newOutput(s.logger.stderr)
			return nil
		}
		s.logger.stderr.Close() // the program sees its end
	} else if s.stdout, err = openOutput(p.stdout); err != nil {
		return fmt.Errorf("open stdout: %w", err)
	}
	if s.stderr, err = openOutput(p.stderr); err != nil {
		return fmt.Errorf("open stderr: %w", err)
	}
	return nil
}

// openStdin opens the reading end first, so that the keeper finds a reader and neither waits for the client.
func (s *stdio) openStdin(path string) (err error) {
	if err := checkFIFO(path); err != nil {
		return err
	}
	if s.stdin, err = os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0); err != nil {
		return err
	}
	s.keeper, err = os.OpenFile(path, os.O_WRONLY|unix.O_NONBLOCK, 0)
	return err
}

// closeStdin lets stdin end once the client's own writers are closed. It is idempotent.
func (s *stdio) closeStdin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.keeper != nil {
		s.keeper.Close()
		s.keeper = nil
	}
}

// close closes everything, which also ends copies that wait for the client. It is idempotent.
func (s *stdio) close() {
	s.closeStdin()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stdin != nil {
		s.stdin.Close()
	}
	s.stdout.close()
	s.stderr.close()
	s.closing.Do(s.logger.close)
}

// wait waits until nothing is left of a stdio that is closed.
func (s *stdio) wait() { s.logger.wait() }

// output is where one output stream of a process goes.
type output struct {
	file *os.File // nil discards

	once    sync.Once
	stalled chan struct{} // closed when the client has left a full FIFO unread for stallAfter
	failed  atomic.Bool   // nobody takes the output any more
}

var _ io.Writer = (*output)(nil)

// newOutput is an output to a file, or to nowhere.
func newOutput(file *os.File) *output { return &output{file: file, stalled: make(chan struct{})} }

// openOutput opens a FIFO for reading and writing: that never waits for the client, and the client may go away and come
// back, as containerd does when it restarts, without the process seeing a broken pipe.
func openOutput(path string) (*output, error) {
	o := newOutput(nil)
	if path == "" {
		return o, nil
	}
	name, isFile, err := outputPath(path)
	if err != nil {
		return nil, err
	}
	if isFile {
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return nil, err
		}
		o.file, err = os.OpenFile(name, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
		return o, err
	}
	if err := checkFIFO(name); err != nil {
		return nil, err
	}
	o.file, err = os.OpenFile(name, os.O_RDWR|unix.O_NONBLOCK, 0)
	return o, err
}

// outputPath reads what containerd accepts as an output: a path or a URI.
func outputPath(output string) (name string, isFile bool, err error) {
	if !strings.Contains(output, "://") {
		return output, false, nil
	}
	uri, err := url.Parse(output)
	if err != nil {
		return "", false, fmt.Errorf("%q: %w", output, errdefs.ErrInvalidArgument)
	}
	switch uri.Scheme {
	case "fifo":
		return uri.Path, false, nil
	case "file":
		return uri.Path, true, nil
	}
	return "", false, fmt.Errorf("output to %s: this runtime writes to FIFOs, files and logger programs only: %w", uri.Scheme, errdefs.ErrNotImplemented)
}

func checkFIFO(path string) error {
	info, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%s: %w", path, errdefs.ErrNotFound)
	}
	if err != nil {
		return err
	}
	if info.Mode()&os.ModeNamedPipe == 0 {
		return fmt.Errorf("%s is no FIFO: %w", path, errdefs.ErrInvalidArgument)
	}
	return nil
}

// Write writes to the client, or to nowhere. It waits while the client does not read.
func (o *output) Write(data []byte) (int, error) {
	if o.file == nil {
		return len(data), nil
	}
	timer := time.AfterFunc(stallAfter, func() { o.once.Do(func() { close(o.stalled) }) })
	defer timer.Stop()
	n, err := o.file.Write(data)
	if err != nil && !errors.Is(err, os.ErrClosed) {
		o.failed.Store(true)
	}
	return n, err
}

func (o *output) close() {
	if o != nil && o.file != nil {
		o.file.Close()
	}
}
