package harness

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
)

// ServeAs answers by handler as servers of the internet, on their port for https, for programs that Command runs with
// AsInternet.
func (n *Node) ServeAs(handler http.Handler, hosts ...string) (*Server, error) {
	cert, key, err := n.CA.issue(n.Dir, "internet", hosts...)
	if err != nil {
		return nil, err
	}
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return nil, err
	}
	lines := "127.0.0.1 localhost\n" + NodeIP + " " + strings.Join(hosts, " ") + "\n"
	if err := os.WriteFile(n.path("hosts-file"), []byte(lines), 0o644); err != nil {
		return nil, err
	}
	listener, err := n.ns.Listen(net.JoinHostPort(NodeIP, "443"))
	if err != nil {
		return nil, err
	}
	return serve(tls.NewListener(listener, &tls.Config{Certificates: []tls.Certificate{pair}}), handler), nil
}

// AsInternet is the command line by which a program finds the hosts of ServeAs by name, and the environment in which it
// trusts them.
func (n *Node) AsInternet(name string, args ...string) (command, environment []string) {
	command = append([]string{
		"unshare", "--mount", "--propagation", "private", "--", "/bin/sh", "-c",
		`mount --bind "$1" /etc/hosts && shift && exec "$@"`, "sh", n.path("hosts-file"), name,
	}, args...)
	return command, []string{fmt.Sprintf("SSL_CERT_FILE=%s", n.CA.Path)}
}
