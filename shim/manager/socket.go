package manager

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	"github.com/containerd/containerd/v2/pkg/shim"
	"github.com/containerd/errdefs"
)

// socket is a listening unix socket on its way to another process.
type socket struct {
	address  string
	listener *net.UnixListener
	file     *os.File
}

// listen opens the socket at address. A socket file that nobody listens on is a dead shim's and is replaced; one that
// answers means that the pod already has a shim, which is errdefs.ErrAlreadyExists.
func listen(address string) (*socket, error) {
	listener, err := shim.NewSocket(address)
	if err != nil && shim.SocketEaddrinuse(err) {
		if shim.CanConnect(address) {
			return nil, fmt.Errorf("a shim already listens on %s: %w", address, errdefs.ErrAlreadyExists)
		}
		if err := RemoveSocket(address); err != nil {
			return nil, err
		}
		listener, err = shim.NewSocket(address)
	}
	if err != nil {
		return nil, fmt.Errorf("listen on shim socket: %w", err)
	}
	// The file system entry belongs to the process that inherits the socket.
	listener.SetUnlinkOnClose(false)
	file, err := listener.File()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("pass on shim socket: %w", err), listener.Close(), RemoveSocket(address))
	}
	return &socket{address: address, listener: listener, file: file}, nil
}

// release closes this process's copies, and removes the socket when *failed is set.
func (s *socket) release(failed *error) {
	s.file.Close()
	s.listener.Close()
	if *failed != nil {
		*failed = errors.Join(*failed, RemoveSocket(s.address))
	}
}

// RemoveSocket removes the socket file of a shim's address; a missing one is fine.
func RemoveSocket(address string) error {
	if !strings.HasPrefix(address, "unix://") {
		return nil
	}
	if err := shim.RemoveSocket(address); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove shim socket: %w", err)
	}
	return nil
}
