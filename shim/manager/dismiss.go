package manager

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	sandboxapi "github.com/containerd/containerd/api/runtime/sandbox/v1"
	"github.com/containerd/ttrpc"
)

// dismissBudget leaves most of the delete process's time to the clean-up by force.
const dismissBudget = 1500 * time.Millisecond

// dismiss asks a shim that still lives to stop its pod and to end: containerd asks nothing of a shim any more after
// `delete`, for example when its client gave up while the VM booted. A shim that is gone is fine.
func dismiss(ctx context.Context, address, id string) error {
	path, isUnix := strings.CutPrefix(address, "unix://")
	if !isUnix {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, dismissBudget)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("connect to the shim that still runs: %w", err)
	}
	client := ttrpc.NewClient(conn)
	defer client.Close()
	_, err = sandboxapi.NewTTRPCSandboxClient(client).ShutdownSandbox(ctx, &sandboxapi.ShutdownSandboxRequest{SandboxID: id})
	if err != nil {
		return fmt.Errorf("ask the shim that still runs to end: %w", err)
	}
	return nil
}
