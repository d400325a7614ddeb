package harness

import (
	"errors"
	"net"
	"net/http"
	"time"
)

// Server is a server of the test itself inside the node's network, where host and guests reach it.
type Server struct {
	// Host is address and port; references to images in it begin so.
	Host string

	server *http.Server
	done   chan struct{}
	err    error // valid once done is closed
}

// Listen opens a TCP listener on the node's address, on a port that the kernel chooses. It is for servers that bring
// their own accept loop; Serve is for all others.
func (n *Node) Listen() (net.Listener, error) { return n.ns.Listen(net.JoinHostPort(NodeIP, "0")) }

// Serve answers plain http by handler until Close, and tells the host's containerd to reach this registry so. Guests
// need its Host among Guest.PlainRegistries.
func (n *Node) Serve(handler http.Handler) (*Server, error) {
	listener, err := n.Listen()
	if err != nil {
		return nil, err
	}
	if err := n.TrustRegistry(listener.Addr().String(), true); err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	return serve(listener, handler), nil
}

// serve answers until Close.
func serve(listener net.Listener, handler http.Handler) *Server {
	s := &Server{
		Host:   listener.Addr().String(),
		server: &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second},
		done:   make(chan struct{}),
	}
	go func() {
		defer close(s.done)
		if err := s.server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			s.err = err
		}
	}()
	return s
}

// Close ends all connections; whoever connects from then on is refused. It is safe to repeat.
func (s *Server) Close() error {
	err := s.server.Close()
	<-s.done
	return errors.Join(s.err, err)
}
