package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// cleanUpTime is how long containerd may go on with cleaning up after it has answered.
const cleanUpTime = 30 * time.Second

// Leftovers tells what pods that are gone have left on the node: VMs, taps, mounts, sockets and directories. It gives
// containerd's asynchronous clean-up its time before it complains.
func (n *Node) Leftovers() error {
	ctx, cancel := context.WithTimeout(context.Background(), cleanUpTime)
	defer cancel()
	return Eventually(ctx, func(context.Context) error {
		return errors.Join(n.leftProcesses(), n.leftFiles(), n.leftMounts(), n.leftTaps())
	})
}

// leftProcesses finds shims and VMs by the node's folder on their command lines.
func (n *Node) leftProcesses() error {
	dirs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return err
	}
	var faults []error
	for _, path := range dirs {
		raw, err := os.ReadFile(path)
		if err != nil {
			continue // the process has ended meanwhile
		}
		line := string(bytes.ReplaceAll(raw, []byte{0}, []byte{' '}))
		if !strings.Contains(line, n.Dir) {
			continue
		}
		if strings.Contains(line, "qemu-system") || strings.Contains(line, "containerd-shim") {
			faults = append(faults, fmt.Errorf("process %s still runs: %.200s", filepath.Base(filepath.Dir(path)), line))
		}
	}
	return errors.Join(faults...)
}

func (n *Node) leftFiles() error {
	var faults []error
	for _, pattern := range []string{
		"shim/[0-9a-f]*[0-9a-f]", "s/*", "run/io.containerd.runtime.v2.task/*/*", "run/io.containerd.sandbox.controller.v1.shim/k8s.io/*",
	} {
		paths, err := filepath.Glob(n.path(pattern))
		if err != nil {
			return err
		}
		for _, path := range paths {
			faults = append(faults, fmt.Errorf("%s was left behind", path))
		}
	}
	return errors.Join(faults...)
}

func (n *Node) leftMounts() error {
	content, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return err
	}
	var faults []error
	for line := range strings.Lines(string(content)) {
		if fields := strings.Fields(line); len(fields) > 1 && strings.HasPrefix(fields[1], n.Dir+"/") {
			faults = append(faults, fmt.Errorf("mount %s was left behind", fields[1]))
		}
	}
	return errors.Join(faults...)
}

func (n *Node) leftTaps() error {
	return n.ns.do(func() error {
		// /proc/thread-self/net shows the namespace of this very thread.
		content, err := os.ReadFile("/proc/thread-self/net/dev")
		if err != nil {
			return err
		}
		var faults []error
		for line := range strings.Lines(string(content)) {
			name, _, ok := strings.Cut(strings.TrimSpace(line), ":")
			if ok && name != "lo" && name != bridgeName {
				faults = append(faults, fmt.Errorf("network interface %s was left behind", name))
			}
		}
		return errors.Join(faults...)
	})
}
