package integration

import (
	"slices"
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coffer-project/coffer/integration/harness"
)

// checkPulledInGuest runs a container and compares who has fetched what of its image since mark.
func checkPulledInGuest(t *testing.T, l *lab, mark int64) {
	t.Helper()
	if status := l.wait(t, l.start(t, nil, "/bin/true")); status.ExitCode != 0 {
		t.Errorf("exit status %d", status.ExitCode)
	}
	repository := strings.TrimSuffix(strings.TrimPrefix(l.image, l.node.HTTP.Host+"/"), ":v1")
	requests, err := l.node.HTTP.Requests(mark, repository)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := l.node.CRI.Images.ImageStatus(l.ctx(t), &runtime.ImageStatusRequest{Image: &runtime.ImageSpec{Image: l.image}})
	if err != nil || resp.Image == nil {
		t.Fatalf("status of image %s: %v, %v", l.image, resp, err)
	}
	// The image was pushed from the node's address too, but not read.
	var host, guest []string
	for _, r := range requests {
		_, blob, found := strings.Cut(r.Path, "/blobs/")
		switch {
		case !found || r.Method != "GET":
		case r.Client == harness.NodeIP:
			host = append(host, blob)
		case r.Client == l.pod.IP:
			guest = append(guest, blob)
		default:
			t.Errorf("a request from %s: %s", r.Client, r.Path)
		}
	}
	// CRI names an image by the digest of its configuration, which the host may have of another test's image.
	if others := slices.DeleteFunc(host, func(blob string) bool { return blob == resp.Image.Id }); len(others) > 0 {
		t.Errorf("the host fetched %v beside the configuration %s", others, resp.Image.Id)
	}
	if layers := slices.DeleteFunc(guest, func(blob string) bool { return blob == resp.Image.Id }); len(layers) == 0 {
		t.Error("the guest fetched no layer")
	}
}

// runsAsUsual is the short form of TestLife.
func runsAsUsual(t *testing.T, l *lab) {
	t.Helper()
	c := l.start(t, nil, "/bin/sh", "-c", "trap 'exit 3' TERM; echo ready; while :; do sleep 0.1; done")
	l.says(t, c, "ready")
	for script, want := range map[string]string{
		"hostname": l.pod.Config.Hostname, "cat /etc/hostname": l.pod.Config.Hostname,
		"cat /etc/resolv.conf":                       "search coffer.test\nnameserver 10.88.0.1",
		"wget -q -O - " + l.node.HTTP.URL() + "/v2/": "{}",
	} {
		if got := l.sh(t, c, script); got != want {
			t.Errorf("%s: %q, want %q", script, got, want)
		}
	}
	if err := c.Stop(l.ctx(t), 120); err != nil {
		t.Fatal(err)
	}
	if status := l.wait(t, c); status.ExitCode != 3 {
		t.Errorf("exit status %d, want 3", status.ExitCode)
	}
}

func exists(t *testing.T, l *lab, image string) bool {
	t.Helper()
	resp, err := l.node.CRI.Images.ImageStatus(l.ctx(t), &runtime.ImageStatusRequest{
		Image: &runtime.ImageSpec{Image: image, RuntimeHandler: l.pod.Handler},
	})
	if err != nil {
		t.Fatal(err)
	}
	return resp.Image != nil
}
