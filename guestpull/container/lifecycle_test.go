package container

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/guestpull/container/mount"
	"github.com/coffer-project/coffer/guestpull/container/rootfs"
	"github.com/coffer-project/coffer/integration/require"
	agentpb "github.com/coffer-project/coffer/proto/agent"
	"github.com/coffer-project/coffer/proto/oci"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestFailedPullIsReported(t *testing.T) {
	f := newFakes(t)
	f.images.err = errors.Join(errors.New("pull image registry.test/app:1: key kbs:///a/b/c refused by broker"), errdefs.ErrPermissionDenied)
	err := f.Create(t.Context(), f.request("c1"))
	if !errdefs.IsPermissionDenied(err) || !strings.Contains(err.Error(), "refused by broker") {
		t.Errorf("error: %v", err)
	}
	f.wantNothing(t, "c1")
}

func (f *fakes) wantNothing(t *testing.T, id string) {
	t.Helper()
	if f.images.held[id] {
		t.Error("image is held")
	}
	if _, err := os.Stat(f.Base + "/" + id); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("folder is left: %v", err)
	}
	if _, err := f.Wait(t.Context(), id, ""); !errdefs.IsNotFound(err) {
		t.Errorf("container is left: %v", err)
	}
}

func TestCreateFailsInTheRuntime(t *testing.T) {
	require.Root(t)
	f := newFakes(t)
	f.runtime.fail["create"] = errors.New("no")
	if err := f.Create(t.Context(), f.request("c1")); err == nil || !strings.Contains(err.Error(), "create container c1: no") {
		t.Errorf("error: %v", err)
	}
	if !f.runtime.did("delete") {
		t.Error("the runtime was not told to forget what it may have made")
	}
	f.wantNothing(t, "c1")
	// The id is free again.
	delete(f.runtime.fail, "create")
	must(t, f.Create(t.Context(), f.request("c1")))
}

func TestRemoveWhileCreating(t *testing.T) {
	f := newFakes(t)
	f.images.block = make(chan struct{})
	created := make(chan error, 1)
	go func() { created <- f.Create(context.Background(), f.request("c1")) }()
	<-f.images.block
	if err := f.Start(t.Context(), "c1"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("start while creating: %v", err)
	}
	if err := f.Create(t.Context(), f.request("c1")); !errdefs.IsAlreadyExists(err) {
		t.Errorf("create while creating: %v", err)
	}
	must(t, f.Remove(t.Context(), "c1", 0))
	if err := <-created; !errors.Is(err, context.Canceled) {
		t.Errorf("creation: %v", err)
	}
	f.wantNothing(t, "c1")
}

// TestEachCallInEachState is the table of what may be done when.
func TestEachCallInEachState(t *testing.T) {
	require.Root(t)
	reach := map[State]func(f *fakes) error{
		StateCreated: func(*fakes) error { return nil },
		StateRunning: func(f *fakes) error { return f.Start(context.Background(), "c1") },
		StatePaused: func(f *fakes) error {
			return errors.Join(f.Start(context.Background(), "c1"), f.Pause(context.Background(), "c1"))
		},
		StateStopped: func(f *fakes) error {
			err := errors.Join(f.Start(context.Background(), "c1"), f.Signal(context.Background(), "c1", "", 9))
			_, waited := f.Wait(context.Background(), "c1", "")
			c, found := f.get("c1")
			for found == nil && c.State() != StateStopped { // entered just after the exit is known
				time.Sleep(time.Millisecond)
			}
			return errors.Join(err, waited)
		},
	}
	exec := &agentpb.ExecProcessRequest{ContainerId: "c1", ExecId: "e1", Process: &oci.Process{Args: []string{"x"}}}
	calls := map[string]struct {
		run func(f *fakes) error
		ok  []State
	}{
		"start":  {func(f *fakes) error { return f.Start(context.Background(), "c1") }, []State{StateCreated}},
		"pause":  {func(f *fakes) error { return f.Pause(context.Background(), "c1") }, []State{StateRunning}},
		"resume": {func(f *fakes) error { return f.Resume(context.Background(), "c1") }, []State{StatePaused}},
		"exec":   {func(f *fakes) error { return f.Exec(context.Background(), exec) }, []State{StateRunning}},
		"update": {func(f *fakes) error {
			return f.Update(context.Background(), &agentpb.UpdateContainerRequest{ContainerId: "c1"})
		},
			[]State{StateCreated, StateRunning, StatePaused}},
		"remove": {func(f *fakes) error { return f.Remove(context.Background(), "c1", 0) },
			[]State{StateCreated, StateRunning, StatePaused, StateStopped}},
	}
	for state, prepare := range reach {
		for name, call := range calls {
			t.Run(state.String()+"/"+name, func(t *testing.T) {
				f := newFakes(t)
				must(t, f.Create(t.Context(), f.request("c1")))
				must(t, prepare(f))
				want := false
				for _, s := range call.ok {
					want = want || s == state
				}
				err := call.run(f)
				if (err == nil) != want || err != nil && !errdefs.IsFailedPrecondition(err) {
					t.Errorf("got %v", err)
				}
			})
		}
	}
}

func TestRemoveGoesOnAfterAFailure(t *testing.T) {
	require.Root(t)
	f := newFakes(t)
	must(t, f.Create(t.Context(), f.request("c1")))
	f.runtime.fail["delete"] = errors.New("busy")
	if err := f.Remove(t.Context(), "c1", 0); err == nil || !strings.Contains(err.Error(), "busy") {
		t.Errorf("remove: %v", err)
	}
	if err := f.Start(t.Context(), "c1"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("start of a half-removed container: %v", err)
	}
	if !f.images.held["c1"] {
		t.Error("the image was released below a root that is still mounted")
	}
	delete(f.runtime.fail, "delete")
	must(t, f.Remove(t.Context(), "c1", 0))
	f.wantNothing(t, "c1")
}

func TestExecsAreForgotten(t *testing.T) {
	require.Root(t)
	f := newFakes(t)
	must(t, f.Create(t.Context(), f.request("c1")))
	must(t, f.Start(t.Context(), "c1"))
	c, err := f.get("c1")
	must(t, err)
	for i := range keptExecs + 10 {
		id := "e" + strings.Repeat("x", i)
		must(t, f.Exec(t.Context(), &agentpb.ExecProcessRequest{ContainerId: "c1", ExecId: id, Process: &oci.Process{Args: []string{"x"}}}))
		must(t, f.Signal(t.Context(), "c1", id, 9))
		if _, err := f.Wait(t.Context(), "c1", id); err != nil {
			t.Fatal(err)
		}
		for _, stderr := range []bool{false, true} {
			if data, err := f.Read(t.Context(), "c1", id, stderr, 10); err != nil || len(data) > 0 {
				t.Fatalf("end of output: %q, %v", data, err)
			}
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.execs) > keptExecs+1 || len(c.execOrder) != len(c.execs) {
		t.Errorf("%d execs are kept, %d in order", len(c.execs), len(c.execOrder))
	}
}

// TestExecIDIsFreeAgain: clients may give all their execs one name, one after the other.
func TestExecIDIsFreeAgain(t *testing.T) {
	require.Root(t)
	f := newFakes(t)
	must(t, f.Create(t.Context(), f.request("c1")))
	must(t, f.Start(t.Context(), "c1"))
	c, err := f.get("c1")
	must(t, err)
	request := &agentpb.ExecProcessRequest{ContainerId: "c1", ExecId: "again", Process: &oci.Process{Args: []string{"x"}}}
	for range 3 {
		must(t, f.Exec(t.Context(), request))
		if err := f.Exec(t.Context(), request); !errdefs.IsAlreadyExists(err) {
			t.Errorf("while it runs: %v", err)
		}
		_, p, err := f.process("c1", "again")
		must(t, err)
		must(t, f.Signal(t.Context(), "c1", "again", 9))
		<-p.done
		if err := f.Exec(t.Context(), request); !errdefs.IsAlreadyExists(err) {
			t.Errorf("before its status was told: %v", err)
		}
		if _, err := f.Wait(t.Context(), "c1", "again"); err != nil {
			t.Fatal(err)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.execs) != 1 || len(c.execOrder) != 1 {
		t.Errorf("%d execs are kept, %d in order", len(c.execs), len(c.execOrder))
	}
}

// TestUserIsTold: the host learns who the first process runs as, and an exec as somebody else does not change that.
func TestUserIsTold(t *testing.T) {
	require.Root(t)
	f := newFakes(t)
	etc := filepath.Join(f.images.layer, "etc")
	must(t, errors.Join(
		os.Mkdir(etc, 0o755),
		os.WriteFile(filepath.Join(etc, "passwd"), []byte("root:x:0:0:::\napp:x:1000:1001:::\n"), 0o600),
		os.WriteFile(filepath.Join(etc, "group"), []byte("extra:x:50000:app\n"), 0o600),
	))
	req := f.request("c1")
	req.OCI.Process.User = &oci.User{Username: "app", AdditionalGids: []uint32{7}}
	must(t, f.Create(t.Context(), req))
	must(t, f.Start(t.Context(), "c1"))
	must(t, f.Exec(t.Context(), &agentpb.ExecProcessRequest{ContainerId: "c1", ExecId: "e1", Process: &oci.Process{Args: []string{"x"}}}))
	got, err := f.User("c1")
	if want := (rootfs.User{UID: 1000, GID: 1001, Groups: []uint32{7, 1001, 50000}}); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v", got, err)
	}
	if _, err := f.User("c2"); !errdefs.IsNotFound(err) {
		t.Errorf("unknown container: %v", err)
	}
}

func TestNamesOfTheGuestAreTaken(t *testing.T) {
	f := newFakes(t)
	for _, id := range []string{"shared", "sandbox", "image"} {
		if err := f.Create(t.Context(), f.request(id)); !errdefs.IsInvalidArgument(err) {
			t.Errorf("container %s: %v", id, err)
		}
		if _, err := os.Stat(f.Base + "/" + id + "/rootfs"); err == nil {
			t.Errorf("folder %s was used", id)
		}
	}
}

func TestPinRefusesOtherPlaces(t *testing.T) {
	root := t.TempDir()
	for name, path := range map[string]string{
		"root itself": root, "above": root + "/..", "dots": root + "/a/../../etc", "elsewhere": "/etc/passwd", "prefix": root + "x/a",
	} {
		if mount.Below(root, path) {
			t.Errorf("%s: %s is taken to be below %s", name, path, root)
		}
	}
}
