package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/coffer-project/coffer/integration/harness"
)

const (
	// leakContainers is how many containers must have come and gone for the comparison to mean something.
	leakContainers = 20
	// shimMemoryLimit is what a shim may hold while its pod runs.
	shimMemoryLimit = 40 << 10 // KiB
)

// usage is what a shim holds.
type usage struct{ files, goroutines, residentKiB int }

// settled is what the pod's shim holds after its first containers, which fill what is meant to stay: pools and buffers.
func settled(t *testing.T, l *lab) usage {
	t.Helper()
	for range 2 {
		c := l.sleeper(t, nil)
		l.sh(t, c, "true")
		l.removeContainer(t, c)
	}
	return shimUsage(t, l)
}

// lifeLeaks compares what the shim holds, now that many containers have come and gone, with what it held before.
func lifeLeaks(t *testing.T, l *lab, before usage) {
	for l.count < leakContainers { // when not all tests were asked for
		l.removeContainer(t, l.sleeper(t, nil))
	}
	// The last container's goroutines end a moment after the answer to its deletion.
	var after usage
	err := harness.Eventually(l.ctx(t), func(context.Context) error {
		after = shimUsage(t, l)
		if after.files > before.files || after.goroutines > before.goroutines {
			return fmt.Errorf("%d containers leave the shim with %+v, %+v before", l.count, after, before)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	t.Logf("shim: %+v after %d containers, %+v before", after, l.count, before)
	if after.residentKiB > shimMemoryLimit {
		t.Errorf("the shim has %d KiB of resident memory, the limit is %d", after.residentKiB, shimMemoryLimit)
	}
}

func shimUsage(t *testing.T, l *lab) usage {
	t.Helper()
	pid, err := l.node.ShimPID(l.pod)
	if err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	u := usage{files: len(files), goroutines: goroutines(t, l, pid)}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			if u.residentKiB, err = strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(value), " kB")); err != nil {
				t.Fatal(err)
			}
		}
	}
	return u
}

// goroutines counts those of the shim: like every shim of containerd it writes their stacks to the log when it is asked by a
// signal.
func goroutines(t *testing.T, l *lab, pid int) int {
	t.Helper()
	log := l.node.Containerd.LogPath
	info, err := os.Stat(log)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	count := 0
	err = harness.Eventually(l.ctx(t), func(context.Context) error {
		content, err := os.ReadFile(log)
		if err != nil {
			return err
		}
		_, dump, found := bytes.Cut(content[info.Size():], []byte("BEGIN goroutine stack dump"))
		dump, _, whole := bytes.Cut(dump, []byte("END goroutine stack dump"))
		if !found || !whole {
			return errors.New("the shim has not written its stacks")
		}
		count = bytes.Count(dump, []byte("goroutine "))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return count
}
