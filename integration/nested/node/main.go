// Command node is PID 1 of the test's own machine, and then everything that runs there: it makes an ordinary node of it,
// with containerd, Coffer and what they need, runs pods on it, and says how that went on the second serial port. The
// command nested, one folder above, puts it there.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/integration/nested/layout"
)

func main() {
	if os.Getpid() == 1 {
		boot()
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
	defer cancel()
	if err := runSteps(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "failed:", err)
		os.Exit(1)
	}
}

// boot sets the machine up, runs the tests as a child, so that PID 1 is free to reap orphans, says how they ended, and
// switches the machine off. It never returns: a kernel whose PID 1 ends panics.
func boot() {
	err := setUp()
	if err == nil {
		err = reapUntil(exec.Command("/proc/self/exe"))
	}
	verdict := layout.Success
	if err != nil {
		verdict = layout.Failure + err.Error()
	}
	fmt.Println(verdict)
	unix.Sync()
	err = errors.Join(unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_RDONLY, ""), unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF))
	fmt.Println("power off:", err)
	select {}
}

// reapUntil runs cmd and collects every process that is left to PID 1 until it has ended.
func reapUntil(cmd *exec.Cmd) error {
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("wait for the tests: %w", err)
		case pid == cmd.Process.Pid && status.Exited() && status.ExitStatus() == 0:
			return nil
		case pid == cmd.Process.Pid:
			return fmt.Errorf("the tests ended with status %#x", uint32(status))
		}
	}
}
