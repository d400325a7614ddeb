package harness

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// NodeIP is the node's address on the pod bridge; the registry and the broker listen on it.
	NodeIP = "10.88.0.1"

	bridgeName = "coffer0"
	podSubnet  = "10.88.0.0/16"
)

// netNS is a named network namespace with nothing in it but loopback and the pod bridge.
type netNS struct{ name string }

func newNetNS(ctx context.Context, name string) (_ *netNS, retErr error) {
	n := &netNS{name: name}
	if err := run(ctx, "ip", "netns", "add", name); err != nil {
		return nil, err
	}
	defer func() {
		if retErr != nil {
			_ = n.Close()
		}
	}()
	for _, args := range []string{
		"link set lo up",
		"link add " + bridgeName + " type bridge",
		"addr add " + NodeIP + "/16 dev " + bridgeName,
		"link set " + bridgeName + " up",
	} {
		if err := run(ctx, "ip", append([]string{"-n", name}, strings.Fields(args)...)...); err != nil {
			return nil, err
		}
	}
	return n, nil
}

// Path is the file to which the namespace is bound.
func (n *netNS) Path() string { return filepath.Join("/run/netns", n.name) }

// Close removes the namespace and with it the bridge. Processes in it must have ended.
func (n *netNS) Close() error {
	return run(context.Background(), "ip", "netns", "del", n.name)
}

// command is a program inside the namespace; it outlives every context. nsenter only switches the network: `ip netns
// exec` would also remount /sys and hide the cgroups from containerd.
func (n *netNS) command(name string, args ...string) *exec.Cmd {
	return exec.Command("nsenter", n.enter(name, args)...)
}

func (n *netNS) enter(name string, args []string) []string {
	return append([]string{"--net=" + n.Path(), "--", name}, args...)
}

// Listen opens a TCP listener inside the namespace.
func (n *netNS) Listen(address string) (net.Listener, error) {
	var listener net.Listener
	err := n.do(func() (err error) {
		listener, err = net.Listen("tcp", address)
		return err
	})
	return listener, err
}

// Dial opens a TCP connection inside the namespace.
func (n *netNS) Dial(ctx context.Context, _, address string) (net.Conn, error) {
	var conn net.Conn
	err := n.do(func() (err error) {
		conn, err = (&net.Dialer{}).DialContext(ctx, "tcp4", address)
		return err
	})
	return conn, err
}

func (n *netNS) do(fn func() error) error { return inNetNS(n.Path(), fn) }

// inNetNS runs fn on a thread inside the namespace at path. Sockets keep the namespace they were made in; the thread does not
// return to the pool, so no other goroutine can land on it.
func inNetNS(path string, fn func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the runtime ends the thread with the goroutine
		file, err := os.Open(path)
		if err != nil {
			result <- err
			return
		}
		defer file.Close()
		if err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err != nil {
			result <- fmt.Errorf("enter %s: %w", path, err)
			return
		}
		result <- fn()
	}()
	return <-result
}

// run executes a command and quotes its output in the error.
func run(ctx context.Context, name string, args ...string) error {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("run %s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
