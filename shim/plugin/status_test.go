package plugin

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/shim/event"
	"github.com/coffer-project/coffer/shim/sandbox"
	"github.com/coffer-project/coffer/shim/status"
)

// stateDir is the pod's one state directory.
func (h *harness) stateDir() string {
	h.t.Helper()
	entries, err := os.ReadDir(h.config.StateDir)
	must(h.t, err)
	if len(entries) != 1 {
		h.t.Fatalf("%d state directories, want 1", len(entries))
	}
	return filepath.Join(h.config.StateDir, entries[0].Name())
}

func TestStatusSocket(t *testing.T) {
	h := newHarness(t)
	h.runSandbox()
	dir := h.stateDir()
	record, err := sandbox.ReadRecord(dir)
	must(t, err)
	if record.ID != podID || record.PodName != "web" || record.ShimPID != os.Getpid() {
		t.Errorf("record is %+v", record)
	}
	var report sandbox.Report
	must(t, status.Report(h.ctx, dir, &report))
	if report.State != "running" || report.VMPID == 0 || len(report.Boot) == 0 {
		t.Errorf("report is %+v", report)
	}
	if _, err := status.Console(h.ctx, dir, 0, false); !errors.Is(err, errdefs.ErrPermissionDenied) || !strings.Contains(err.Error(), "guest.show_console") {
		t.Errorf("console that is not allowed: %v", err)
	}
	h.config.Guest.ShowConsole = true
	text, err := status.Console(h.ctx, dir, 0, true)
	must(t, err)
	defer text.Close()
	h.vm().Crash(errors.New("power cut"))
	if all, err := io.ReadAll(text); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) || !strings.Contains(string(all), "guest: hello\n") {
		t.Errorf("console has %q, %v", all, err)
	}
}

func TestPodEvents(t *testing.T) {
	h := newHarness(t)
	h.runSandbox()
	if e := h.events.awaitOurs(t, event.PodStarted); e.Sandbox != podID || e.Name != "web" || e.Took <= 0 || len(e.Steps) != 4 {
		t.Errorf("start: %+v", e)
	}
	h.vm().Crash(errors.New("power cut"))
	if e := h.events.awaitOurs(t, event.PodStopped); !strings.Contains(e.Error, "power cut") {
		t.Errorf("end: %+v", e)
	}
}

func TestPodFailureEvent(t *testing.T) {
	h := newHarness(t)
	h.driver.StartErr = errors.New("no such machine")
	must(t, h.createSandbox())
	if err := h.startSandbox(); err == nil {
		t.Fatal("the pod started")
	}
	if e := h.events.awaitOurs(t, event.PodFailed); !strings.Contains(e.Error, "no such machine") {
		t.Errorf("event: %+v", e)
	}
}
