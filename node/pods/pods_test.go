package pods

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/shim/sandbox"
	"github.com/coffer-project/coffer/shim/status"
)

// shim stands for one that serves a pod.
type shim struct{ report sandbox.Report }

func (s shim) Status() any { return s.report }

func (s shim) ConsoleFrom(context.Context, uint64) ([]string, uint64, error) {
	return nil, 0, errdefs.ErrFailedPrecondition
}

// place makes a state directory.
func place(t *testing.T, root, name string, record *sandbox.Record) string {
	t.Helper()
	dir := filepath.Join(root, name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if record == nil {
		return dir
	}
	raw, err := json.Marshal(record)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "pod.json"), raw, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func serve(t *testing.T, dir string, report sandbox.Report) {
	t.Helper()
	server, err := status.Serve(t.Context(), dir, shim{report})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
}

// hold takes a state directory's lock as a shim does.
func hold(t *testing.T, dir string) {
	t.Helper()
	file, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		t.Fatal(err)
	}
}

func TestList(t *testing.T) {
	root, now := t.TempDir(), time.Now().UTC().Truncate(time.Second)
	running := place(t, root, "0000000000000001", &sandbox.Record{ID: "sandbox-one", PodName: "web", PodNamespace: "default", CreatedAt: now.Add(-90 * time.Second)})
	hold(t, running)
	serve(t, running, sandbox.Report{
		State: "running", VMPID: 42, VCPUs: 2, MemoryMiB: 512, Accelerator: "tcg",
		Boot: []sandbox.Phase{{Name: "vm_boot", Micros: 400_000}, {Name: "agent_ready", Micros: 1_600_000}},
		Containers: map[string]sandbox.ContainerReport{
			"a": {State: "running"}, "b": {State: "creating", Image: "r.example/app:1", Progress: &sandbox.Progress{
				Phase: "fetch", Layers: 3, LayersDone: 1, Bytes: 1 << 20, TotalBytes: 3 << 20,
			}},
		},
	})
	hold(t, place(t, root, "0000000000000002", &sandbox.Record{ID: "mute"}))
	place(t, root, "0000000000000003", &sandbox.Record{ID: "killed", CreatedAt: now.Add(-72 * time.Hour)})
	place(t, root, "0000000000000004", nil)
	if err := os.WriteFile(filepath.Join(root, "accelerator.json"), nil, 0o600); err != nil {
		t.Fatal(err)
	}

	found, err := List(t.Context(), root, filepath.Join(root, "none"))
	if err != nil || len(found) != 4 {
		t.Fatalf("found %+v, %v", found, err)
	}
	for i, want := range []string{"running", "unknown", "orphan", "orphan"} {
		if got := found[i].State(); got != want {
			t.Errorf("pod %d is %s, want %s: %+v", i, got, want, found[i])
		}
	}
	if found[1].Problem == "" {
		t.Error("why a shim does not answer is not told")
	}
	var text strings.Builder
	if err := WriteTable(&text, found, now); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"default/web  sandbox-one  running  1m30s  42      2    512 MiB  tcg    2s    1 creating, 1 running\n",
		"default/web pulls r.example/app:1: fetch, 1 of 3 layers, 1.0 MiB of 3.0 MiB\n",
		"3d ", "2 orphaned", "cofferctl clean", "mute: no shim answers",
	} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("no %q in\n%s", want, text.String())
		}
	}
}

func TestFind(t *testing.T) {
	all := []Pod{
		{Record: sandbox.Record{ID: "abc1", PodName: "web", PodNamespace: "one"}},
		{Record: sandbox.Record{ID: "abc2", PodName: "web", PodNamespace: "two"}},
		{Record: sandbox.Record{ID: "def", PodName: "db", PodNamespace: "one"}},
	}
	for name, test := range map[string]struct {
		wanted, id string
		wantErr    error
	}{
		"id":          {"abc2", "abc2", nil},
		"part of id":  {"d", "def", nil},
		"name":        {"db", "def", nil},
		"full name":   {"two/web", "abc2", nil},
		"two pods":    {"web", "", errdefs.ErrInvalidArgument},
		"two ids":     {"abc", "", errdefs.ErrInvalidArgument},
		"nobody":      {"x", "", errdefs.ErrNotFound},
		"nothing":     {"", "", errdefs.ErrNotFound},
		"only a part": {"ne/web", "", errdefs.ErrNotFound},
	} {
		t.Run(name, func(t *testing.T) {
			pod, err := Find(all, test.wanted)
			if !errors.Is(err, test.wantErr) || err == nil && pod.ID != test.id {
				t.Errorf("found %+v, %v", pod, err)
			}
		})
	}
}

func TestClean(t *testing.T) {
	root := t.TempDir()
	for name, test := range map[string]struct {
		age    time.Duration
		held   bool
		orphan bool
		reaped bool
	}{
		"orphan":     {time.Hour, false, true, true},
		"young":      {0, false, true, false},
		"alive":      {time.Hour, false, false, false},
		"back again": {time.Hour, true, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			dir := place(t, root, strings.ReplaceAll(name, " ", ""), nil)
			if err := os.Chtimes(dir, time.Time{}, time.Now().Add(-test.age)); err != nil {
				t.Fatal(err)
			}
			if test.held {
				hold(t, dir)
			}
			p := &Pod{StateDir: dir, Orphan: test.orphan}
			reaped := false
			err := p.clean(t.Context(), func(context.Context, string) error {
				reaped = true
				return nil
			})
			if reaped != test.reaped || (err == nil) != test.reaped {
				t.Errorf("reaped %v, %v", reaped, err)
			}
		})
	}
	if err := Clean(t.Context(), &Pod{StateDir: filepath.Join(root, "gone"), Orphan: true}); err != nil {
		t.Errorf("a directory that is gone: %v", err)
	}
}

func TestPulls(t *testing.T) {
	found := []Pod{
		{Record: sandbox.Record{ID: "s1", PodName: "web", PodNamespace: "default"}, Report: &sandbox.Report{Containers: map[string]sandbox.ContainerReport{
			"a": {State: "running", Image: "i:1", CreateMicros: 2_500_000, FilesMicros: 500_000, Layers: []sandbox.Layer{
				{CompressedBytes: 1000, UnpackedBytes: 3000}, {CompressedBytes: 500}, // the second one was there
			}},
			"b": {State: "creating", Image: "i:2", Progress: &sandbox.Progress{Phase: "fetch", Bytes: 5, TotalBytes: 9, BytesPerSecond: 3, Micros: 7}},
			"c": {State: "running"},
		}}},
		{Record: sandbox.Record{ID: "s2"}, Orphan: true},
	}
	pulls := Pulls(found)
	want := []Pull{
		{Pod: "default/web", Sandbox: "s1", Container: "b", Image: "i:2", Phase: "fetch", Bytes: 5, TotalBytes: 9, BytesPerSecond: 3, Micros: 7},
		{
			Pod: "default/web", Sandbox: "s1", Container: "a", Image: "i:1", Phase: PhaseDone, Layers: 2, LayersDone: 2,
			Bytes: 1000, TotalBytes: 1500, BytesPerSecond: 500, Micros: 2_000_000,
		},
	}
	if !slices.Equal(pulls, want) {
		t.Errorf("got %+v, want %+v", pulls, want)
	}
}
