package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	"go.etcd.io/bbolt"
)

const (
	crashRoot = "COFFER_TEST_CRASH_ROOT"
	crashStep = "COFFER_TEST_CRASH_STEP"
	// maxSteps is far above what the scenario has: a test that reaches it does not end.
	maxSteps = 1000
)

func TestMain(m *testing.M) {
	if root := os.Getenv(crashRoot); root != "" {
		step, err := strconv.Atoi(os.Getenv(crashStep))
		if err == nil {
			err = crashChild(root, step)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// killingStore ends the process with SIGKILL at the n-th step: before, inside and after each transaction.
type killingStore struct {
	MetaStore
	left *int
}

func (k killingStore) step() {
	if *k.left--; *k.left == 0 {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
}

func (k killingStore) WithTransaction(ctx context.Context, writable bool, fn storage.TransactionCallback) error {
	k.step()
	err := k.MetaStore.WithTransaction(ctx, writable, func(ctx context.Context) error {
		if err := fn(ctx); err != nil {
			return err
		}
		k.step()
		return nil
	})
	k.step()
	return err
}

// operation is one step of the scenario. done tells from the records whether it has happened.
type operation struct {
	name string
	run  func(context.Context, *Snapshotter) error
	done func(records map[string]snapshots.Info) bool
}

func has(key string, kind snapshots.Kind, mode Mode) func(map[string]snapshots.Info) bool {
	return func(r map[string]snapshots.Info) bool {
		info, ok := r[key]
		return ok && info.Kind == kind && modeOf(info) == mode
	}
}

func hasNot(key string) func(map[string]snapshots.Info) bool {
	return func(r map[string]snapshots.Info) bool {
		_, ok := r[key]
		return !ok
	}
}

// scenario is the life of an image left to the guest and of one passed through, each with a container, and then the
// removal of the first.
func scenario() []operation {
	one := layerOf{chain: chainA.String(), image: app, above: 1}
	nameOne, _ := nameOf(one.labels())
	two := layerOf{chain: chainB.String(), parent: nameOne.String(), image: app}
	nameTwo, _ := nameOf(two.labels())
	pause := layerOf{chain: chainA.String(), image: "registry.k8s.io/pause:3"}

	prepare := func(key, parent string, labels map[string]string) func(context.Context, *Snapshotter) error {
		return func(ctx context.Context, s *Snapshotter) error {
			_, err := s.Prepare(ctx, key, parent, snapshots.WithLabels(labels))
			if errdefs.IsAlreadyExists(err) {
				return nil
			}
			return err
		}
	}
	remove := func(key string) func(context.Context, *Snapshotter) error {
		return func(ctx context.Context, s *Snapshotter) error { return s.Remove(ctx, key) }
	}
	return []operation{
		{"layer one", prepare("extract-1", "", one.labels()), has(nameOne.String(), snapshots.KindCommitted, ModeReference)},
		{"layer two", prepare("extract-2", nameOne.String(), two.labels()), has(nameTwo.String(), snapshots.KindCommitted, ModeReference)},
		{"container", prepare("c", nameTwo.String(), nil), has("c", snapshots.KindActive, ModeReference)},
		{"unpack pause", prepare("extract-3", "", pause.labels()), has("extract-3", snapshots.KindActive, ModeOverlay)},
		{"commit pause", func(ctx context.Context, s *Snapshotter) error { return s.Commit(ctx, "ns/3/pause", "extract-3") }, has("ns/3/pause", snapshots.KindCommitted, ModeOverlay)},
		{"pause container", prepare("p", "ns/3/pause", nil), has("p", snapshots.KindActive, ModeOverlay)},
		{"remove container", remove("c"), hasNot("c")},
		{"remove layer two", remove(nameTwo.String()), hasNot(nameTwo.String())},
		{"remove layer one", remove(nameOne.String()), hasNot(nameOne.String())},
	}
}

func crashOptions() ([]Opt, error) {
	rules, err := NewRules([]string{"*/pause:*"}, ModeReference)
	return []Opt{WithRules(rules), func(o *options) {
		o.meta = func(_ context.Context, path string) (MetaStore, error) { return unsynced(path) }
	}}, err
}

// unsynced opens the database without waiting for the disk at each commit: the kernel keeps what a killed process wrote,
// and there are thousands of commits here.
func unsynced(path string) (MetaStore, error) {
	return storage.NewMetaStore(path, func(o *bbolt.Options) error {
		o.NoSync, o.NoGrowSync = true, true
		return nil
	})
}

// crashChild runs the scenario on root from wherever an earlier run ended, and is killed at the given step. Before and
// after each operation it writes a word to the journal, as a client remembers what it was answered.
func crashChild(root string, step int) error {
	ctx := context.Background()
	opts, err := crashOptions()
	if err != nil {
		return err
	}
	s, err := New(ctx, root, append(opts, func(o *options) {
		o.meta = func(_ context.Context, path string) (MetaStore, error) {
			ms, err := unsynced(path)
			return killingStore{MetaStore: ms, left: &step}, err
		}
	})...)
	if err != nil {
		return err
	}
	journal, err := os.OpenFile(root+".journal", os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	for _, op := range scenario() {
		fmt.Fprintln(journal, "begin", op.name)
		if err := op.run(ctx, s); err != nil {
			return fmt.Errorf("%s: %w", op.name, err)
		}
		fmt.Fprintln(journal, "done", op.name)
	}
	return errors.Join(journal.Close(), s.Close())
}

// runChild runs the scenario in a process of its own and reports whether it was killed.
func runChild(t *testing.T, root string, step int) (killed bool) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), crashRoot+"="+root, crashStep+"="+strconv.Itoa(step))
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return false
	case errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL:
		return true
	}
	t.Fatalf("step %d: %v: %s", step, err, out)
	return false
}

// TestKill kills the snapshotter at every step of the scenario in turn, opens what it left, and checks it.
func TestKill(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for step := 1; step < maxSteps; step++ {
		root := filepath.Join(dir, strconv.Itoa(step))
		killed := runChild(t, root, step)
		checkAfterKill(t, root, step)
		if !killed {
			t.Logf("the scenario has %d steps", step-1)
			return
		}
	}
	t.Fatal("the scenario does not end")
}

func checkAfterKill(t *testing.T, root string, step int) {
	t.Helper()
	opts, err := crashOptions()
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(t.Context(), root, opts...)
	if err != nil {
		t.Fatalf("step %d: open what the kill left: %v", step, err)
	}
	records := checkWhole(t, s, root)
	raw, err := os.ReadFile(root + ".journal")
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	ops, done := scenario(), strings.Count(string(raw), "done ")
	// The operation that was begun may have happened, and have taken the place of the one before.
	if done > 0 && !ops[done-1].done(records) && !(done < len(ops) && ops[done].done(records)) {
		t.Errorf("step %d: %s was answered and is gone", step, ops[done-1].name)
	}
	// What comes after the one that was begun cannot have happened, unless it is a removal of what never was.
	for _, op := range ops[min(done+1, len(ops)):] {
		if op.done(records) && !strings.HasPrefix(op.name, "remove") {
			t.Errorf("step %d: %s has happened by itself", step, op.name)
		}
	}
	// The client asks again for what it was not answered, and goes on to the end.
	for _, op := range ops[done:] {
		if op.done(records) {
			continue
		}
		if err := op.run(t.Context(), s); err != nil {
			t.Errorf("step %d: %s, asked again: %v", step, op.name, err)
		}
		records = checkWhole(t, s, root)
		if !op.done(records) {
			t.Errorf("step %d: %s, asked again, did not happen", step, op.name)
		}
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// checkWhole checks what must hold at any time: overlay snapshots and directories are the same set, every directory has
// its parts and its record, no unpack of a reference-only layer is visible, every parent is there.
func checkWhole(t *testing.T, s *Snapshotter, root string) map[string]snapshots.Info {
	t.Helper()
	found, wanted := map[string]snapshots.Info{}, map[string]bool{}
	err := s.meta.WithTransaction(t.Context(), false, func(ctx context.Context) error {
		return storage.WalkInfo(ctx, func(ctx context.Context, info snapshots.Info) error {
			found[info.Name] = info
			if modeOf(info) == ModeReference {
				return nil
			}
			id, _, _, err := storage.GetInfo(ctx, info.Name)
			if err != nil {
				return err
			}
			wanted[filepath.Join(root, "snapshots", id)] = true
			if rec, err := s.records.read(id); err != nil || !rec.equal(recordOf(info)) {
				t.Errorf("record of %s: %+v, %v", info.Name, rec, err)
			}
			_, err = os.Stat(filepath.Join(root, "snapshots", id, "fs"))
			return err
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	dirs := snapshotDirs(t, root)
	for _, dir := range dirs {
		if !wanted[dir] {
			t.Errorf("directory %s belongs to no snapshot", dir)
		}
	}
	if len(dirs) != len(wanted) {
		t.Errorf("directories %v for %v", dirs, wanted)
	}
	for name, info := range found {
		if _, ok := found[info.Parent]; info.Parent != "" && !ok {
			t.Errorf("%s lacks its parent %s", name, info.Parent)
		}
		if modeOf(info) == ModeReference && strings.HasPrefix(name, "extract") {
			t.Errorf("%s is visible", name)
		}
	}
	return found
}

// TestKillDuringRebuild loses the database with overlay snapshots there and kills each attempt to rebuild it.
func TestKillDuringRebuild(t *testing.T) {
	t.Parallel()
	opts, err := crashOptions()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for step := 1; step < maxSteps; step++ {
		root := filepath.Join(dir, strconv.Itoa(step))
		s := open(t, root, opts...)
		for i, parent := range []string{"", "l0", "l1"} {
			if _, err := s.Prepare(t.Context(), "extract", parent); err != nil {
				t.Fatal(err)
			}
			if err := s.Commit(t.Context(), fmt.Sprintf("l%d", i), "extract"); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := s.Prepare(t.Context(), "p", "l2"); err != nil {
			t.Fatal(err)
		}
		before, err := s.Mounts(t.Context(), "p")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(upperOf(before[0].Options), "mark"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(s.Close(), os.Remove(filepath.Join(root, "metadata.db"))); err != nil {
			t.Fatal(err)
		}

		if step%2 == 0 {
			// As if an earlier attempt had come half way.
			dirs := snapshotDirs(t, root)
			if err := os.Rename(dirs[0], filepath.Join(root, "snapshots", setAside+filepath.Base(dirs[0]))); err != nil {
				t.Fatal(err)
			}
		}

		killed := runChild(t, root, step)
		s = open(t, root, opts...)
		records := checkWhole(t, s, root)
		for name, kind := range map[string]snapshots.Kind{"l0": snapshots.KindCommitted, "l1": snapshots.KindCommitted, "l2": snapshots.KindCommitted, "p": snapshots.KindActive} {
			if !has(name, kind, ModeOverlay)(records) {
				t.Errorf("step %d: %s is lost", step, name)
			}
		}
		after, err := s.Mounts(t.Context(), "p")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(filepath.Join(upperOf(after[0].Options), "mark")); err != nil {
			t.Errorf("step %d: %v", step, err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		// Steps after the rebuild are those of TestKill.
		if raw, _ := os.ReadFile(root + ".journal"); len(raw) > 0 || !killed {
			if step < 4 {
				t.Fatalf("the rebuild was killed at %d steps only", step-1)
			}
			return
		}
	}
	t.Fatal("the rebuild does not end")
}

func upperOf(options []string) string {
	for _, o := range options {
		if dir, ok := strings.CutPrefix(o, "upperdir="); ok {
			return dir
		}
	}
	return ""
}
