package integration

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coffer-project/coffer/integration/harness"
	"github.com/coffer-project/coffer/integration/registrytest"
)

// TestRestarts cuts a node's power, and then kills its daemons one after another while a pod runs that must not notice.
func TestRestarts(t *testing.T) {
	t.Parallel()
	node := ownNode(t, harness.Options{})
	old, l := testPowerCut(t, node)
	witness := l.start(t, nil, "/bin/sh", "-c", "trap 'exit 7' TERM; echo ready; while :; do sleep 0.1; done")
	l.says(t, witness, "ready")
	t.Run("snapshotter during a pull", func(t *testing.T) { testSnapshotterKilledInPull(t, l) })
	t.Run("snapshotter loses its database", func(t *testing.T) { testDatabaseLost(t, l) })
	t.Run("containerd", func(t *testing.T) { testContainerdKilled(t, l) })
	t.Run("the pod has seen nothing", func(t *testing.T) {
		if err := witness.Stop(l.ctx(t), 120); err != nil {
			t.Fatal(err)
		}
		if status := l.wait(t, witness); status.ExitCode != 7 {
			t.Errorf("exit status %d, want 7", status.ExitCode)
		}
		l.remove(t)
	})
	t.Run("nothing is left", func(t *testing.T) {
		old.remove(t)
		checkGone(t, node)
	})
}

// manyLayers is an image of more layers than other images have, whose pull takes long enough to be met half-way. Each layer
// says its number.
func manyLayers(t *testing.T, node *harness.Node, count int) string {
	t.Helper()
	var layers []registrytest.Layer
	for i := range count {
		layers = append(layers, registrytest.NewLayer(registrytest.Gzip,
			registrytest.Entry{Name: fmt.Sprintf("layer-%d", i), Body: fmt.Sprintf("this is layer %d\n", i)},
			registrytest.Entry{Name: "top", Body: fmt.Sprintf("the top is %d\n", i)}))
	}
	reference := node.HTTP.Host + "/restart/layers:v1"
	if err := node.Ctl(t.Context(), true, "image", "copy", "oci:"+busyboxLayout(t, node, layers...).Dir, reference, "--plain-http"); err != nil {
		t.Fatal(err)
	}
	return reference
}

func testSnapshotterKilledInPull(t *testing.T, l *lab) {
	const layers, met = 100, 5
	ctx := l.ctx(t)
	image := manyLayers(t, l.node, layers)
	before, err := l.node.CRI.Snapshots(ctx)
	if err != nil {
		t.Fatal(err)
	}
	pulled := make(chan error, 1)
	go func() { pulled <- l.pod.Pull(ctx, image) }()
	for now := before; now < before+met; {
		select {
		case err := <-pulled:
			t.Fatalf("the pull was over (%v) with %d new snapshots", err, now-before)
		default:
		}
		if now, err = l.node.CRI.Snapshots(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.node.Snapshotter.Kill(); err != nil {
		t.Fatal(err)
	}
	err = <-pulled
	t.Log("interrupted:", err)
	if err == nil || !strings.Contains(err.Error(), "snapshot") {
		t.Errorf("a pull whose snapshotter was killed: %v; want an error about the snapshot", err)
	}
	restartSnapshotter(t, l)
	if err := l.pod.Pull(ctx, image); err != nil {
		t.Fatalf("pull again: %v", err)
	}
	after, err := l.node.CRI.Snapshots(ctx)
	// The lowest layer is that of the pod's first image.
	if err != nil || after != before+layers {
		t.Errorf("%d new snapshots, %v; want one for each of %d layers", after-before, err, layers)
	}
	c := l.start(t, func(config *runtime.ContainerConfig) {
		config.Image.Image, config.Image.UserSpecifiedImage = image, image
	}, "/bin/sh", "-c", "cat /layer-0 /layer-99 /top; ls /layer-* | wc -l")
	if status := l.wait(t, c); status.ExitCode != 0 {
		t.Errorf("exit status %d", status.ExitCode)
	}
	if output, err := c.Output(); err != nil || output != "this is layer 0\nthis is layer 99\nthe top is 99\n100\n" {
		t.Errorf("output %q, %v", output, err)
	}
}

// restartSnapshotter waits until containerd has found the new process, which it tries every few seconds: what is asked of it
// before fails, and is tried again by the kubelet.
func restartSnapshotter(t *testing.T, l *lab) {
	t.Helper()
	if err := l.node.StartSnapshotter(l.ctx(t)); err != nil {
		t.Fatal(err)
	}
	err := harness.Eventually(l.ctx(t), func(ctx context.Context) error {
		_, err := l.node.CRI.Snapshots(ctx)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func testDatabaseLost(t *testing.T, l *lab) {
	old := l.sleeper(t, nil)
	if err := l.node.Snapshotter.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(l.node.SnapshotterRoot(), "metadata.db")); err != nil {
		t.Fatal(err)
	}
	restartSnapshotter(t, l)
	c := l.start(t, nil, "/bin/echo", "still here")
	l.wait(t, c)
	if output, err := c.Output(); err != nil || output != "still here\n" {
		t.Errorf("output %q, %v", output, err)
	}
	// A container whose snapshot the snapshotter has forgotten can be removed all the same.
	l.removeContainer(t, old)
	if err := l.pod.Pull(l.ctx(t), encryptedImage(t, l.node)); err != nil {
		t.Errorf("pull another image: %v", err)
	}
}

// testContainerdKilled kills containerd under two containers: one ends while nobody listens, one goes on.
func testContainerdKilled(t *testing.T, l *lab) {
	asked, answer := make(chan struct{}), make(chan struct{})
	server, err := l.node.Serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/wait" {
			close(asked)
			<-answer
		}
		fmt.Fprintln(w, "answer")
	}))
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	ending := l.start(t, nil, "/bin/sh", "-c", "wget -q -O - http://"+server.Host+"/wait; exit 9")
	going := l.start(t, nil, "/bin/sh", "-c", "n=0; while :; do n=$((n+1)); echo count $n; sleep 0.2; done")
	l.says(t, going, "count 1")
	select {
	case <-asked:
	case <-l.ctx(t).Done():
		t.Fatal("the container does not ask")
	}

	if err := l.node.Containerd.Kill(); err != nil {
		t.Fatal(err)
	}
	close(answer)
	if err := l.node.WaitAtShim(l.ctx(t), ending); err != nil {
		t.Fatal(err)
	}
	if err := l.node.StartContainerd(l.ctx(t)); err != nil {
		t.Fatal(err)
	}
	err = harness.Eventually(l.ctx(t), func(ctx context.Context) error {
		_, err := l.node.CRI.Runtime.Version(ctx, &runtime.VersionRequest{})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}

	status, err := l.node.CRI.Runtime.PodSandboxStatus(l.ctx(t), &runtime.PodSandboxStatusRequest{PodSandboxId: l.pod.ID})
	if err != nil || status.Status.State != runtime.PodSandboxState_SANDBOX_READY {
		t.Errorf("the pod after the restart: %v, %v", status, err)
	}
	if status := l.wait(t, ending); status.ExitCode != 9 {
		t.Errorf("the container that ended meanwhile has exit status %d (%s), want 9", status.ExitCode, status.Reason)
	}
	if got := l.sh(t, going, "echo exec"); got != "exec" {
		t.Errorf("exec after the restart says %q", got)
	}
	output, err := going.Output()
	if err != nil {
		t.Fatal(err)
	}
	// The new containerd goes on with the log where the old one was killed.
	l.says(t, going, fmt.Sprintf("count %d\n", strings.Count(output, "count")+10))
	c := l.start(t, nil, "/bin/echo", "new")
	l.wait(t, c)
	if output, err := c.Output(); err != nil || output != "new\n" {
		t.Errorf("a new container after the restart: %q, %v", output, err)
	}
	if err := going.Stop(l.ctx(t), 0); err != nil {
		t.Fatal(err)
	}
	if status := l.wait(t, going); status.ExitCode != 137 || status.FinishedAt < time.Now().Add(-lifeBudget).UnixNano() {
		t.Errorf("the stopped container: %v", status)
	}
}
