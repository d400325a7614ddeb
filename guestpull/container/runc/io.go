package runc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/guestpull/container/stdio"
)

// childIO hands the process its ends of the pipes. runc itself inherits them too.
type childIO struct{ child *stdio.Child }

func (c childIO) Set(cmd *exec.Cmd) {
	cmd.Stdin, cmd.Stdout, cmd.Stderr = c.child.Stdin, c.child.Stdout, c.child.Stderr
}

// The agent's ends are not runc's business.
func (childIO) Stdin() io.WriteCloser { return nil }
func (childIO) Stdout() io.ReadCloser { return nil }
func (childIO) Stderr() io.ReadCloser { return nil }
func (childIO) Close() error          { return nil }

// consoleSocket is where runc sends the master of the terminal that it made inside the container.
type consoleSocket struct {
	path     string
	listener *net.UnixListener
}

func listenConsole(path string) (*consoleSocket, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen for the terminal: %w", err)
	}
	return &consoleSocket{path: path, listener: l}, nil
}

// Path is what runc is told.
func (s *consoleSocket) Path() string { return s.path }

// Close also removes the socket.
func (s *consoleSocket) Close() { _ = s.listener.Close() }

// receive returns the terminal. Call it after runc has ended successfully: then the message is there already.
func (s *consoleSocket) receive(ctx context.Context) (*os.File, error) {
	stop := context.AfterFunc(ctx, func() { _ = s.listener.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	conn, err := s.listener.AcceptUnix()
	if err != nil {
		return nil, fmt.Errorf("receive the terminal: %w", err)
	}
	defer conn.Close()
	stopConn := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stopConn()
	name, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := conn.ReadMsgUnix(name, oob)
	if err != nil {
		return nil, fmt.Errorf("receive the terminal: %w", err)
	}
	fds, err := descriptors(oob[:n])
	if err != nil {
		return nil, fmt.Errorf("receive the terminal: %w", err)
	}
	fd := fds[0]
	unix.CloseOnExec(fd)
	// Not blocking: so that reads can be given up, and closing ends them.
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("receive the terminal: %w", err)
	}
	return os.NewFile(uintptr(fd), "terminal"), nil
}

func descriptors(oob []byte) ([]int, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	if len(messages) != 1 {
		return nil, errors.New("runc sent no terminal")
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return nil, err
	}
	if len(fds) != 1 {
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
		return nil, errors.New("runc sent no single terminal")
	}
	return fds, nil
}
