package harness

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	snapshots "github.com/containerd/containerd/api/services/snapshots/v1"
	tasks "github.com/containerd/containerd/api/services/tasks/v1"
	"google.golang.org/grpc/metadata"

	"github.com/coffer-project/coffer/shim/sandbox"
)

// criNamespace is where containerd keeps what CRI makes.
const criNamespace = "k8s.io"

// Tasks is containerd's own view of the containers' processes, for what CRI has no call for. Requests need TaskContext.
func (c *CRI) Tasks() tasks.TasksClient { return tasks.NewTasksClient(c.conn) }

// TaskContext names the namespace in which containerd keeps CRI's containers.
func TaskContext(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "containerd-namespace", criNamespace)
}

// Snapshots counts what our snapshotter has, as containerd sees it.
func (c *CRI) Snapshots(ctx context.Context) (int, error) { return c.SnapshotsIn(ctx, "coffer") }

// SnapshotsIn counts what a snapshotter has, as containerd sees it.
func (c *CRI) SnapshotsIn(ctx context.Context, snapshotter string) (int, error) {
	stream, err := snapshots.NewSnapshotsClient(c.conn).List(TaskContext(ctx), &snapshots.ListSnapshotsRequest{Snapshotter: snapshotter})
	if err != nil {
		return 0, fmt.Errorf("list snapshots: %w", err)
	}
	count := 0
	for {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return count, nil
		}
		if err != nil {
			return 0, fmt.Errorf("list snapshots: %w", err)
		}
		count += len(resp.Info)
	}
}

// DefaultSnapshotterRoot is the state folder of our second snapshotter.
func (n *Node) DefaultSnapshotterRoot() string { return n.path("snapshotter-default") }

// SnapshotterRoot is the snapshotter's state folder.
func (n *Node) SnapshotterRoot() string { return n.path("snapshotter") }

// Report is what the pod's shim tells about the pod.
func (p *Pod) Report(ctx context.Context) (*sandbox.Report, error) {
	info, err := p.Info(ctx)
	if err != nil {
		return nil, fmt.Errorf("report of pod %s: %w", p.ID, err)
	}
	report := new(sandbox.Report)
	if err := json.Unmarshal([]byte(info[sandbox.InfoKey]), report); err != nil {
		return nil, fmt.Errorf("report of pod %s: %w", p.ID, err)
	}
	return report, nil
}

// ShimPID finds the shim of a pod by its command line.
func (n *Node) ShimPID(pod *Pod) (int, error) {
	return findProcess(func(args []string) bool {
		return strings.HasSuffix(args[0], filepath.Base(n.Tools.Shim)) && contains(args, "-id", pod.ID)
	}, "shim of pod "+pod.ID)
}

// VMPID finds the VM of a pod by its command line, which names the pod.
func (n *Node) VMPID(pod *Pod) (int, error) {
	return findProcess(func(args []string) bool {
		return strings.Contains(args[0], "qemu-system") && strings.Contains(strings.Join(args, " "), pod.ID)
	}, "VM of pod "+pod.ID)
}

func contains(args []string, flag, value string) bool {
	for i := range len(args) - 1 {
		if args[i] == flag && args[i+1] == value {
			return true
		}
	}
	return false
}

// findProcess returns the one process whose arguments match.
func findProcess(match func(args []string) bool, what string) (int, error) {
	paths, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return 0, err
	}
	found := 0
	for _, path := range paths {
		raw, err := os.ReadFile(path)
		if err != nil || len(raw) == 0 {
			continue // it has ended meanwhile, or is the kernel's
		}
		var args []string
		for arg := range bytes.SplitSeq(bytes.TrimSuffix(raw, []byte{0}), []byte{0}) {
			args = append(args, string(arg))
		}
		if !match(args) {
			continue
		}
		if found != 0 {
			return 0, fmt.Errorf("find the %s: there are two", what)
		}
		if found, err = strconv.Atoi(filepath.Base(filepath.Dir(path))); err != nil {
			return 0, err
		}
	}
	if found == 0 {
		return 0, fmt.Errorf("find the %s: there is none", what)
	}
	return found, nil
}
