package boot

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// prefix marks the lines that the shim looks for among the kernel's.
const prefix = "coffer-guest: "

// sayf writes one line to the console. Standard error is the console that the kernel opened for PID 1.
func sayf(format string, args ...any) {
	line := prefix + fmt.Sprintf(format, args...) + "\n"
	if _, err := os.Stderr.WriteString(line); err != nil {
		sayToKernel(line)
	}
}

// sayToKernel writes a line to the kernel's log at a level that reaches the console even when the kernel is quiet. It is
// the second way out for a machine whose console is gone, so its own errors have nowhere to go.
func sayToKernel(line string) {
	kmsg, err := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0)
	if err != nil {
		return
	}
	defer kmsg.Close()
	_, _ = kmsg.WriteString("<2>" + line)
}

// powerOff writes the reason, if any, and ends the machine. It does not return.
func powerOff(reason error) {
	if reason != nil {
		// One line: the shim quotes the last line that carries the prefix.
		sayf("fatal: %s", strings.ReplaceAll(reason.Error(), "\n", "; "))
	} else {
		sayf("power off")
	}
	// TCSBRK with a non-zero argument waits until a serial console has sent what it holds.
	_ = unix.IoctlSetInt(int(os.Stderr.Fd()), unix.TCSBRK, 1)
	unix.Sync()
	err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	// Only a machine that is not ours to switch off gets here.
	sayf("fatal: cannot power off: %v", err)
	os.Exit(1)
}
