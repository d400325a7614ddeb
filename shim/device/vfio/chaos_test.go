package vfio_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/coffer-project/coffer/shim/device/vfio"
)

var errInjected = errors.New("the kernel says no")

// TestNoLeak reserves and gives back devices a hundred times while the kernel refuses at random, and shims are killed at random.
// After each cycle the devices must be with their driver, as they were, and nobody's.
func TestNoLeak(t *testing.T) {
	for seed := range uint64(5) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			tree, devices := disks(t, seed%2 == 1)
			m := manager(t, tree)
			chance := rand.New(rand.NewPCG(seed, 42))
			refuse := func(string) error {
				if chance.IntN(5) == 0 {
					return errInjected
				}
				return nil
			}
			outcomes := map[string]int{}
			for cycle := range 100 {
				who := fmt.Sprint("pod", cycle)
				tree.Fail = refuse
				outcomes[one(t, m, chance, who, devices)]++
				tree.Fail = nil
				if err := m.Recover(t.Context(), owner(who).Dir); err != nil {
					t.Fatalf("cycle %d: %v", cycle, err)
				}
				checkFree(t, tree, m)
				if t.Failed() {
					t.Fatalf("leaked in cycle %d", cycle)
				}
			}
			for _, kind := range []string{"given back", "killed", "not added"} {
				if outcomes[kind] == 0 {
					t.Errorf("no cycle was %q: %v", kind, outcomes)
				}
			}
			checkDescriptors(t, m)
		})
	}
}

// one is the life of one pod.
func one(t *testing.T, m *vfio.Manager, chance *rand.Rand, who string, devices []vfio.Device) (outcome string) {
	t.Helper()
	claim, err := m.Reserve(t.Context(), owner(who), devices)
	if err != nil {
		t.Fatalf("reserve: %v", err) // the reservation touches no device
	}
	outcome = "given back"
	if _, err := claim.Add(t.Context()); err != nil {
		if !errors.Is(err, errInjected) {
			t.Fatalf("add: %v", err)
		}
		outcome = "not added"
	}
	if chance.IntN(3) == 0 {
		if err := claim.Abandon(); err != nil {
			t.Fatal(err)
		}
		return "killed"
	}
	for try := 0; ; try++ {
		err := claim.Remove(t.Context())
		if err == nil {
			return outcome
		}
		if !errors.Is(err, errInjected) || try == 100 {
			t.Fatalf("remove: %v", err)
		}
	}
}

// checkDescriptors fails when the process still has a lock open.
func checkDescriptors(t *testing.T, m *vfio.Manager) {
	t.Helper()
	open, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range open {
		if target, err := os.Readlink(fd); err == nil && filepath.Dir(target) == m.Dir {
			t.Errorf("%s is open", target)
		}
	}
}
