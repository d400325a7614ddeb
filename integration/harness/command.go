package harness

import (
	"os/exec"
	"path/filepath"
)

// Command is a program inside the node's network namespace. It is the caller's to start and to end: the node ends
// only what it has started itself.
func (n *Node) Command(name string, args ...string) *exec.Cmd { return n.ns.command(name, args...) }

// Socket is where containerd listens.
func (n *Node) Socket() string { return n.path("containerd.sock") }

// Logs are the files to which the node's processes write.
func (n *Node) Logs() []string {
	logs, _ := filepath.Glob(n.path("*.log")) // the pattern is well-formed
	return logs
}
