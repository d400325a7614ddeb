package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
)

// ctrScript gives ctr the node's CNI where it looks for it: its paths are fixed. The mounts are in a namespace of its own
// and go with it.
const ctrScript = `set -eu
cni_conf=$1 cni_bin=$2 cni_cache=$3; shift 3
exec 3<"$cni_conf" 4<"$cni_bin" 5<"$cni_cache"
for dir in /etc /opt /var/lib; do mount -t tmpfs -o mode=755 tmpfs "$dir"; done
mkdir -p /etc/cni/net.d /opt/cni/bin /var/lib/cni
mount --bind /proc/self/fd/3 /etc/cni/net.d
mount --bind /proc/self/fd/4 /opt/cni/bin
mount --bind /proc/self/fd/5 /var/lib/cni
exec 3<&- 4<&- 5<&-
exec "$@"
`

// CtrCommand is ctr with the node's containerd and network. It outlives every context.
func (n *Node) CtrCommand(args ...string) (*exec.Cmd, error) {
	cache := n.path("cni-cache")
	if err := os.MkdirAll(cache, 0o700); err != nil {
		return nil, err
	}
	whole := append([]string{
		"--mount", "--propagation", "private", "--", "/bin/sh", "-c", ctrScript, "ctr",
		n.path("cni"), n.Tools.CNIPlugins, cache, n.Tools.CtrTool, "--address", n.path("containerd.sock"),
	}, args...)
	return n.ns.command("unshare", whole...), nil
}

// CtrError is the failure of a ctr command, or the exit status of the container that it ran.
type CtrError struct {
	// Status is ctr's exit status, Stderr what it wrote.
	Status int
	Stderr string
}

func (e *CtrError) Error() string { return fmt.Sprintf("ctr: exit status %d: %s", e.Status, e.Stderr) }

// Ctr runs ctr to its end and returns its output. A failure is a CtrError.
func (n *Node) Ctr(ctx context.Context, args ...string) (string, error) {
	cmd, err := n.CtrCommand(args...)
	if err != nil {
		return "", err
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Start(); err != nil {
		return "", err
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
	defer stop()
	err = cmd.Wait()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		err = &CtrError{Status: exit.ExitCode(), Stderr: stderr.String()}
	}
	return stdout.String(), err
}

// CtrRun are the arguments of ctr run, and of ctr container create, that make a container of Coffer's on this node:
// its runtime with the node's own configuration, its snapshotter, and the measured document.
func (n *Node) CtrRun() ([]string, error) {
	annotations, err := n.PodAnnotations(Guest{})
	if err != nil {
		return nil, err
	}
	args := []string{"--runtime", "io.containerd.coffer.v2", "--runtime-config-path", n.path("shim.toml"), "--snapshotter", "coffer"}
	for key, value := range annotations {
		args = append(args, "--annotation", key+"="+value)
	}
	return args, nil
}

// CtrPull are the arguments by which ctr pulls an image from the node's registries for Coffer.
func (n *Node) CtrPull(reference string, flags ...string) []string {
	args := append([]string{"image", "pull", "--snapshotter", "coffer", "--hosts-dir", n.path("hosts")}, flags...)
	return append(args, reference)
}
