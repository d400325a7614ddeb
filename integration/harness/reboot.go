package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// PowerCut takes from the node what a machine loses with its power: every process of containerd's, the snapshotter's and
// of pods at one stroke, network namespaces and mounts, and what lies on a tmpfs. Registries and broker are other machines
// and go on. The disk stays as it is.
func (n *Node) PowerCut(ctx context.Context) error {
	for _, p := range []*Process{n.Containerd, n.Snapshotter} {
		p.stopping.Store(true)
	}
	pids := []int{n.Containerd.PID(), n.Snapshotter.PID()}
	err := Eventually(ctx, func(context.Context) error {
		running, err := n.podProcesses()
		if err != nil {
			return err
		}
		for _, pid := range append(pids, running...) {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("kill %d: %w", pid, err)
			}
		}
		pids = nil // reaped from here on, and so perhaps another process by now
		if len(running) > 0 {
			return fmt.Errorf("processes %v still run", running)
		}
		return nil
	})
	if err != nil {
		return err
	}
	<-n.Containerd.done
	<-n.Snapshotter.done
	mounts, err := n.mounts()
	if err != nil {
		return err
	}
	for _, mount := range slices.Backward(mounts) { // the newest first
		if err := unix.Unmount(mount, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s: %w", mount, err)
		}
	}
	for _, volatile := range []string{"run", "s", "shim", "containerd.sock", "containerd.sock.ttrpc", "snapshotter.sock"} {
		if err := os.RemoveAll(n.path(volatile)); err != nil {
			return err
		}
	}
	return nil
}

// podProcesses are the shims and VMs of the node.
func (n *Node) podProcesses() ([]int, error) {
	paths, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, path := range paths {
		raw, err := os.ReadFile(path)
		if err != nil || !bytes.Contains(raw, []byte(n.Dir)) {
			continue
		}
		program, _, _ := strings.Cut(string(raw), "\x00")
		if !strings.Contains(program, "qemu-system") && !strings.Contains(program, "containerd-shim") {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil {
			return nil, err
		}
		pids = append(pids, pid)
	}
	return pids, nil
}
