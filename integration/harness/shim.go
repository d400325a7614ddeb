package harness

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/ttrpc"
)

// DialShim connects to the shim of a pod, as containerd does: for what no client of containerd's can ask.
func (n *Node) DialShim(ctx context.Context, pod *Pod) (*ttrpc.Client, error) {
	return n.dialShim(ctx, "io.containerd.sandbox.controller.v1.shim", pod.ID)
}

// WaitAtShim waits for a container's end by its shim alone: for when containerd is not there to be asked.
func (n *Node) WaitAtShim(ctx context.Context, c *Container) error {
	client, err := n.dialShim(ctx, "io.containerd.runtime.v2.task", c.ID)
	if err != nil {
		return err
	}
	defer client.Close()
	if _, err := taskapi.NewTTRPCTaskClient(client).Wait(ctx, &taskapi.WaitRequest{ID: c.ID}); err != nil {
		return fmt.Errorf("wait for container %s: %w", c.ID, err)
	}
	return nil
}

// dialShim finds a shim by the bundle that containerd's plugin made for it.
func (n *Node) dialShim(ctx context.Context, plugin, id string) (*ttrpc.Client, error) {
	raw, err := os.ReadFile(filepath.Join(n.path("run"), plugin, criNamespace, id, "bootstrap.json"))
	if err != nil {
		return nil, fmt.Errorf("find the shim of %s: %w", id, err)
	}
	var bootstrap struct {
		Address string `json:"address"`
	}
	if err := json.Unmarshal(raw, &bootstrap); err != nil {
		return nil, fmt.Errorf("find the shim of %s: %w", id, err)
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", strings.TrimPrefix(bootstrap.Address, "unix://"))
	if err != nil {
		return nil, fmt.Errorf("dial the shim of %s: %w", id, err)
	}
	return ttrpc.NewClient(conn), nil
}
