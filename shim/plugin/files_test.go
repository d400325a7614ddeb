package plugin

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	agentpb "github.com/coffer-project/coffer/proto/agent"
	"github.com/coffer-project/coffer/shim/agent/agenttest"
)

// podFiles are files of a pod as the kubelet lays them out.
type podFiles struct{ secret, plain, termination string }

// mountFiles gives the containers of the harness a secret, a plain folder and a file for their last message.
func (h *harness) mountFiles() podFiles {
	h.t.Helper()
	pod := filepath.Join(h.root, "pods/8f1d")
	p := podFiles{
		secret: pod + "/volumes/kubernetes.io~secret/keys", plain: pod + "/plain", termination: pod + "/containers/app/5c0a1b2d",
	}
	for _, dir := range []string{p.secret, p.plain, filepath.Dir(p.termination)} {
		must(h.t, os.MkdirAll(dir, 0o755))
	}
	must(h.t, os.WriteFile(p.plain+"/file", []byte("plain"), 0o600))
	must(h.t, os.WriteFile(p.termination, nil, 0o600))
	h.switchSecret(p, "1")
	for at, source := range map[string]string{"/keys": p.secret, "/plain": p.plain, "/dev/termination-log": p.termination} {
		h.mounts = append(h.mounts, specs.Mount{Destination: at, Source: source, Type: "bind", Options: []string{"rbind"}})
	}
	return p
}

// switchSecret gives the secret a new value.
func (h *harness) switchSecret(p podFiles, value string) {
	h.t.Helper()
	must(h.t, os.Mkdir(filepath.Join(p.secret, ".."+value), 0o755))
	must(h.t, os.WriteFile(filepath.Join(p.secret, ".."+value, "key"), []byte(value), 0o600))
	must(h.t, os.Symlink(".."+value, p.secret+"/..data_tmp"))
	must(h.t, os.Rename(p.secret+"/..data_tmp", p.secret+"/..data"))
}

// files are the contents of the container's copies in the guest, by the last two parts of their names.
func (h *harness) files(container string) map[string]string {
	out := map[string]string{}
	for name, file := range h.guest.Files() {
		if strings.Contains(name, "/"+container+"-") {
			out[filepath.Join(filepath.Base(filepath.Dir(name)), filepath.Base(name))] = file.Data
		}
	}
	return out
}

func (h *harness) eventually(what string, holds func() bool) {
	h.t.Helper()
	deadline, tick := time.After(patience), time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-deadline:
			h.t.Fatal("in vain: ", what)
		}
	}
}

// TestContainerFiles leads a container's files of the host through its life.
func TestContainerFiles(t *testing.T) {
	h := newHarness(t)
	h.runSandbox()
	p := h.mountFiles()
	process := h.run("c1")
	if got := h.files("c1"); got["..1/key"] != "1" {
		t.Errorf("the guest has %q", got)
	}
	h.switchSecret(p, "2")
	h.eventually("the secret follows", func() bool {
		got := h.files("c1")
		_, old := got["..1/key"]
		return got["..2/key"] == "2" && !old
	})

	message := strings.Repeat("x", 5000) + "the end"
	h.guest.SetTermination("c1", message)
	asked, answer := make(chan struct{}), make(chan struct{})
	h.guest.Intercept("GetDiagnosticData", func(context.Context) error {
		close(asked)
		<-answer
		return nil
	})
	process.Exit(3)
	h.await("the question for the message", asked)
	if topics := h.events.of("c1"); strings.Contains(strings.Join(topics, " "), "exit") {
		t.Errorf("the exit is known before the message: %q", topics)
	}
	close(answer)
	if exit := h.events.awaitExit(t, "c1"); exit.GetExitStatus() != 3 {
		t.Errorf("exit status %d", exit.GetExitStatus())
	}
	if got, err := os.ReadFile(p.termination); err != nil || string(got) != message[len(message)-4096:] {
		t.Errorf("message of %d bytes, %v", len(got), err)
	}
	must(t, h.delete("c1", ""))
	if got := h.files("c1"); len(got) != 0 {
		t.Errorf("the guest still has %q", got)
	}
}

// TestContainerFilesFail creates containers that fail at every step: nothing of their files is left in the guest.
func TestContainerFilesFail(t *testing.T) {
	for name, test := range map[string]struct {
		prepare func(h *harness, p podFiles)
		want    error
	}{
		"guest fails": {func(h *harness, _ podFiles) { h.guest.Fail("CreateContainer", errdefs.ErrPermissionDenied) }, errdefs.ErrPermissionDenied},
		"no room": {func(h *harness, _ podFiles) {
			// The plain folder is copied before the secret.
			h.guest.Intercept("CopyFile", func(context.Context) error {
				for _, call := range h.guest.Calls("CopyFile") {
					if strings.Contains(call.Request.(*agentpb.CopyFileRequest).GetPath(), "/..1") {
						return errdefs.ErrResourceExhausted
					}
				}
				return nil
			})
		}, errdefs.ErrResourceExhausted},
		"broken secret": {func(h *harness, p podFiles) { must(h.t, os.RemoveAll(p.secret+"/..1")) }, errdefs.ErrNotFound},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t)
			h.runSandbox()
			test.prepare(h, h.mountFiles())
			if err := h.create("c1", stdioPaths{}, nil); !errors.Is(err, test.want) {
				t.Errorf("error %v, want %v", err, test.want)
			}
			if got := h.files("c1"); len(got) != 0 {
				t.Errorf("the guest still has %q", got)
			}
		})
	}
}

// TestContainerFilesOfStockGuest: without our own services a container's files come and follow, and stay when it goes.
func TestContainerFilesOfStockGuest(t *testing.T) {
	h := newHarness(t, agenttest.WithStockAgent())
	h.runSandbox()
	p := h.mountFiles()
	process := h.run("c1")
	h.switchSecret(p, "2")
	h.eventually("the secret follows", func() bool { return h.files("c1")["..2/key"] == "2" })
	process.Exit(0)
	h.events.awaitExit(t, "c1")
	must(t, h.delete("c1", ""))
	before := maps.Clone(h.files("c1"))
	h.switchSecret(p, "3")
	must(t, h.create("c2", stdioPaths{}, nil))
	if got := h.files("c1"); !maps.Equal(got, before) {
		t.Errorf("files of a deleted container went on from %q to %q", before, got)
	}
}
