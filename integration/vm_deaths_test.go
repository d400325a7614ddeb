package integration

import (
	"context"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coffer-project/coffer/integration/harness"
)

// testVMDeaths kills what a running pod is made of.
func testVMDeaths(t *testing.T, all *podRow) {
	node := all.node
	image := encryptedImage(t, node)
	defer all.removeImage(t, image)
	for name, tc := range map[string]struct {
		victim func(*harness.Pod) (int, error)
		// want is what the shim says of the pod, if it can.
		want string
	}{
		"shim": {node.ShimPID, ""},
		"vm":   {node.VMPID, "signal: killed"},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, node, "coffer", image, nil)
			c := l.sleeper(t, nil)
			vm, err := node.VMPID(l.pod)
			if err != nil {
				t.Fatal(err)
			}
			pid, err := tc.victim(l.pod)
			if err != nil {
				t.Fatal(err)
			}
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			// 255 says, from the shim as from containerd in its place, that nobody can know the exit status.
			if status := l.wait(t, c); status.ExitCode != 255 {
				t.Errorf("the container's exit status is %d (%s: %s), want 255", status.ExitCode, status.Reason, status.Message)
			}
			awaitEnd(t, l, vm)
			awaitNotReady(t, l)
			if _, err := l.tryCreate(t, nil, "/bin/true"); err == nil || !strings.Contains(err.Error(), "is not running") {
				t.Errorf("create in a dead pod: %v", err)
			}
			if tc.want != "" {
				report, err := l.pod.Report(l.ctx(t))
				if err != nil || !strings.Contains(report.Error, tc.want) {
					t.Errorf("the pod's report is %+v, %v; want an error that says %q", report, err, tc.want)
				}
			}
			l.remove(t)
			checkGone(t, node)
			all.gone++
		})
	}
}

// awaitEnd waits until a process is gone.
func awaitEnd(t *testing.T, l *lab, pid int) {
	t.Helper()
	err := harness.Eventually(l.ctx(t), func(context.Context) error {
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); err == nil {
			return fmt.Errorf("process %d still runs", pid)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// awaitNotReady waits until containerd takes the pod for dead.
func awaitNotReady(t *testing.T, l *lab) {
	t.Helper()
	err := harness.Eventually(l.ctx(t), func(ctx context.Context) error {
		resp, err := l.node.CRI.Runtime.PodSandboxStatus(ctx, &runtime.PodSandboxStatusRequest{PodSandboxId: l.pod.ID})
		if err == nil && resp.Status.State != runtime.PodSandboxState_SANDBOX_NOTREADY {
			err = fmt.Errorf("pod %s is %s", l.pod.ID, resp.Status.State)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
