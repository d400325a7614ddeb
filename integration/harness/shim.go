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

// WaitAtShim waits for a container's end by its shim alone: for when containerd is not there to be asked.
func (n *Node) WaitAtShim(ctx context.Context, c *Container) error {
	raw, err := os.ReadFile(filepath.Join(n.path("run"), "io.containerd.runtime.v2.task", criNamespace, c.ID, "bootstrap.json"))
	if err != nil {
		return fmt.Errorf("find the shim of container %s: %w", c.ID, err)
	}
	var bootstrap struct {
		Address string `json:"address"`
	}
	if err := json.Unmarshal(raw, &bootstrap); err != nil {
		return fmt.Errorf("find the shim of container %s: %w", c.ID, err)
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", strings.TrimPrefix(bootstrap.Address, "unix://"))
	if err != nil {
		return fmt.Errorf("dial the shim of container %s: %w", c.ID, err)
	}
	client := ttrpc.NewClient(conn)
	defer client.Close()
	if _, err := taskapi.NewTTRPCTaskClient(client).Wait(ctx, &taskapi.WaitRequest{ID: c.ID}); err != nil {
		return fmt.Errorf("wait for container %s: %w", c.ID, err)
	}
	return nil
}
