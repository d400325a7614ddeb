package attest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/proto/kbs"
)

// maxCPUInfo is how much is read of /proc/cpuinfo, in bytes: the first processor takes about 1,500.
const maxCPUInfo = 64 << 10

// Detect returns the platform that this machine is. root is the machine's file system. On a machine that is a TEE, ready is waited for
// first: it must return once drivers are loaded and configfs is mounted. A TEE never becomes Bare: one that cannot attest is FailedPrecondition.
func Detect(ctx context.Context, root fs.FS, ready func(context.Context) error) (Platform, error) {
	return detect(ctx, root, ready, NewTSM)
}

func detect(ctx context.Context, root fs.FS, ready func(context.Context) error, open func(kbs.TEE) (*TSM, error)) (Platform, error) {
	tee, err := kernelTEE(root)
	if err != nil {
		return nil, fmt.Errorf("find out which TEE this machine is: %w", err)
	}
	if tee == kbs.TEESample {
		return Bare{}, nil
	}
	if err := ready(ctx); err != nil {
		return nil, err
	}
	return open(tee)
}

// kernelTEE returns what the kernel has found out by the time it starts PID 1, TEESample for no TEE. Neither sign can be suppressed by the
// host: the kernel reads them from the processor (MSR SEV_STATUS) and from the TDX module (CPUID leaf 0x21).
func kernelTEE(root fs.FS) (kbs.TEE, error) {
	_, err := fs.Stat(root, "sys/devices/platform/sev-guest")
	if err == nil {
		return kbs.TEESNP, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	info, err := root.Open("proc/cpuinfo")
	if err != nil {
		return "", err
	}
	defer info.Close()
	text, err := io.ReadAll(io.LimitReader(info, maxCPUInfo))
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(text)) {
		name, flags, _ := strings.Cut(line, ":")
		if strings.TrimSpace(name) != "flags" {
			continue
		}
		if slices.Contains(strings.Fields(flags), "tdx_guest") {
			return kbs.TEETDX, nil
		}
		return kbs.TEESample, nil
	}
	return "", fmt.Errorf("/proc/cpuinfo lists no flags of a processor: %w", errdefs.ErrFailedPrecondition)
}
