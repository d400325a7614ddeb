package boot

import (
	"os"
	"os/signal"

	"github.com/containerd/containerd/v2/pkg/sys/reaper"
	"github.com/containerd/go-runc"
	"golang.org/x/sys/unix"
)

// startReaper collects every child that ends, as PID 1 must: orphans of containers become its children. Programs that
// the guest runs itself have to be started through reaper.Default (go-runc does, once its Monitor is set), because a
// plain exec.Cmd would race with the reaper for the exit status.
func startReaper() error {
	runc.Monitor = reaper.Default
	// Room for a burst: signals of the same kind merge, and one Reap collects all children that ended.
	ended := make(chan os.Signal, 32)
	signal.Notify(ended, unix.SIGCHLD)
	go func() {
		for range ended {
			// It fails only when there is no child left, which is no fault.
			_ = reaper.Reap()
		}
	}()
	return nil
}
