package harness

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
)

// Command is a program inside the node's network namespace. It is the caller's to start and to end: the node ends
// only what it has started itself.
func (n *Node) Command(name string, args ...string) *exec.Cmd { return n.ns.command(name, args...) }

// Socket is where containerd listens.
func (n *Node) Socket() string { return n.path("containerd.sock") }

// KeepLogs saves what the node's processes wrote in the folder out, before the node's own folder goes.
func (n *Node) KeepLogs(out string) error {
	logs, _ := filepath.Glob(n.path("*.log")) // the pattern is well-formed
	var faults []error
	for _, path := range logs {
		content, err := os.ReadFile(path)
		if err == nil {
			err = os.WriteFile(filepath.Join(out, filepath.Base(path)), content, 0o644)
		}
		faults = append(faults, err)
	}
	return errors.Join(faults...)
}
