package stdio

import (
	"context"
	"fmt"
	"os"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Set is what the agent holds of one process: three pipes, or one terminal.
type Set struct {
	stdin   *Writer
	stdout  *Reader
	stderr  *Reader // nil with a terminal, whose error output arrives on stdout
	console *os.File
	once    sync.Once
}

// Child holds the ends that the process inherits. Close it once the process has started.
type Child struct {
	Stdin, Stdout, Stderr *os.File
}

// Chown gives the ends to a user of the guest.
func (c *Child) Chown(uid, gid int) error {
	for _, f := range []*os.File{c.Stdin, c.Stdout, c.Stderr} {
		if err := f.Chown(uid, gid); err != nil {
			return err
		}
	}
	return nil
}

// Close releases the agent's copies of the child's ends.
func (c *Child) Close() {
	for _, f := range []*os.File{c.Stdin, c.Stdout, c.Stderr} {
		if f != nil {
			_ = f.Close()
		}
	}
}

// Pipes returns the two sides of a process without a terminal. They are pipes, not sockets, because programs open
// /dev/stdout anew, which the kernel refuses for a socket. size is that of the output pipes in bytes, 0 for the kernel's default.
func Pipes(size int) (_ *Set, _ *Child, retErr error) {
	var files []*os.File
	defer func() {
		if retErr != nil {
			for _, f := range files {
				_ = f.Close()
			}
		}
	}()
	for range 3 {
		r, w, err := os.Pipe()
		if err != nil {
			return nil, nil, fmt.Errorf("make stdio pipe: %w", err)
		}
		files = append(files, r, w)
	}
	if size > 0 {
		for _, f := range []*os.File{files[3], files[5]} {
			if _, err := unix.FcntlInt(f.Fd(), unix.F_SETPIPE_SZ, size); err != nil {
				return nil, nil, fmt.Errorf("set size of stdio pipe: %w", err)
			}
		}
	}
	set := &Set{stdin: newWriter(files[1], false), stdout: newReader(files[2], false), stderr: newReader(files[4], false)}
	return set, &Child{Stdin: files[0], Stdout: files[3], Stderr: files[5]}, nil
}

// Console returns the streams of a process whose terminal's master is given. The set owns the file.
func Console(master *os.File) *Set {
	return &Set{stdin: newWriter(master, true), stdout: newReader(master, true), console: master}
}

// Stdout reads the next chunk of output, see [Reader.Read].
func (s *Set) Stdout(ctx context.Context, size int) ([]byte, error) { return s.stdout.Read(ctx, size) }

// Stderr reads the next chunk of error output, see [Reader.Read]. With a terminal it is at its end from the start.
func (s *Set) Stderr(ctx context.Context, size int) ([]byte, error) {
	if s.stderr == nil {
		return nil, nil
	}
	return s.stderr.Read(ctx, size)
}

// Write hands input to the process, see [Writer.Write].
func (s *Set) Write(ctx context.Context, p []byte) (int, error) { return s.stdin.Write(ctx, p) }

// CloseStdin ends the process's input, see [Writer.Close].
func (s *Set) CloseStdin() { s.stdin.Close() }

// Resize sets the terminal's size in characters. FailedPrecondition: the process has no terminal.
func (s *Set) Resize(rows, columns uint16) error {
	if s.console == nil {
		return fmt.Errorf("the process has no terminal: %w", errdefs.ErrFailedPrecondition)
	}
	conn, err := s.console.SyscallConn()
	if err != nil {
		return fmt.Errorf("resize terminal: %w", err)
	}
	var ioctl error
	err = conn.Control(func(fd uintptr) {
		ioctl = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: columns})
	})
	if err == nil {
		err = ioctl
	}
	if err != nil {
		return fmt.Errorf("resize terminal: %w", err)
	}
	return nil
}

// Exited tells the streams that the process is gone. What it wrote stays readable.
func (s *Set) Exited() {
	s.stdout.exit()
	if s.stderr != nil {
		s.stderr.exit()
	}
}

// Drained reports whether the host has read both output streams to their end.
func (s *Set) Drained() bool {
	return s.stdout.hasEnded() && (s.stderr == nil || s.stderr.hasEnded())
}

// Close releases the streams; reads and writes that wait return. It is idempotent.
func (s *Set) Close() {
	s.once.Do(func() {
		s.stdin.Close()
		_ = s.stdout.f.Close()
		if s.stderr != nil {
			_ = s.stderr.f.Close()
		}
	})
}
