package boot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"github.com/containerd/log"
	"golang.org/x/sys/unix"
)

// maxFiles is the limit of open files that containers inherit unless their spec sets one: what containerd gives them on
// a host.
const maxFiles = 1 << 20

// clockFloor is a time that is certainly in the past. A clock before it was never set, and would make every certificate
// look as if it were not valid yet.
var clockFloor = time.Date(2026, time.January, 1, 0, 0, 0, 0, time.UTC)

// setLimits sets the hostname that holds until a sandbox brings its own, and the limits that children inherit.
func setLimits() error {
	if err := unix.Sethostname([]byte("coffer")); err != nil {
		return fmt.Errorf("set hostname: %w", err)
	}
	files := syscall.Rlimit{Cur: maxFiles, Max: maxFiles}
	// Through package syscall, so that the Go runtime does not put the old limit back in children.
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		return fmt.Errorf("raise the limit of open files to %d: %w", maxFiles, err)
	}
	// A core file would hold a workload's memory.
	if err := syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{}); err != nil {
		return fmt.Errorf("forbid core files: %w", err)
	}
	return nil
}

// loopbackUp uses the old ioctl: under emulation the first netlink call costs 30 ms more.
func loopbackUp() error {
	socket, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open socket: %w", err)
	}
	defer unix.Close(socket)
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	request.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(socket, unix.SIOCSIFFLAGS, request); err != nil {
		return fmt.Errorf("bring loopback up: %w", err)
	}
	return nil
}

// waitEntropy waits until the kernel's random numbers are seeded: keys and TLS sessions made before would be guessable.
// It costs nothing on a CPU with RDRAND.
func waitEntropy(ctx context.Context) error {
	var b [1]byte
	_, err := unix.Getrandom(b[:], unix.GRND_NONBLOCK)
	if !errors.Is(err, unix.EAGAIN) {
		return err
	}
	log.G(ctx).Warn("waiting for the kernel's random numbers to be seeded")
	for {
		if _, err = unix.Getrandom(b[:], 0); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// checkClock moves a clock that was never set to clockFloor. The host sets the clock of a guest, so no decision on trust
// may rest on it alone.
func checkClock(ctx context.Context) error {
	now := time.Now()
	if !now.Before(clockFloor) {
		return nil
	}
	log.G(ctx).WithField("time", now.UTC().Format(time.RFC3339)).Warn("clock is not set, moved to the earliest sensible time")
	floor := unix.NsecToTimeval(clockFloor.UnixNano())
	if err := unix.Settimeofday(&floor); err != nil {
		return fmt.Errorf("set clock: %w", err)
	}
	return nil
}

// readLimited reads a whole file and refuses one larger than limit bytes.
func readLimited(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("read %s: more than %d bytes", path, limit)
	}
	return data, nil
}
