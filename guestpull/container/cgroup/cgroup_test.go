package cgroup

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
)

// group is a folder with a group's files as Linux 6.12 writes them.
func group(t *testing.T, files map[string]string) *reader {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return &reader{dir: dir}
}

func TestCPU(t *testing.T) {
	got := cpu(group(t, map[string]string{"cpu.stat": "usage_usec 30\nuser_usec 10\nsystem_usec 20\nnr_periods 4\nnr_throttled 3\nthrottled_usec 5\n"}))
	if u := got.GetCpuUsage(); u.GetTotalUsage() != 30000 || u.GetUsageInUsermode() != 10000 || u.GetUsageInKernelmode() != 20000 {
		t.Errorf("usage: %v", u)
	}
	if d := got.GetThrottlingData(); d.GetPeriods() != 4 || d.GetThrottledPeriods() != 3 || d.GetThrottledTime() != 5000 {
		t.Errorf("throttling: %v", d)
	}
}

func TestMemory(t *testing.T) {
	got := memory(group(t, map[string]string{
		"memory.current": "100\n", "memory.peak": "200\n", "memory.max": "max\n", "memory.stat": "anon 1\nfile 2\nkernel 3\n",
		"memory.events": "max 7\noom_kill 1\n", "memory.swap.max": "0\n",
	}))
	if u := got.GetUsage(); u.GetUsage() != 100 || u.GetMaxUsage() != 200 || u.GetLimit() != 1<<64-1 || u.GetFailcnt() != 7 {
		t.Errorf("usage: %v", u)
	}
	if got.GetCache() != 2 || got.GetKernelUsage().GetUsage() != 3 || got.GetStats()["anon"] != 1 || got.GetSwapUsage().GetLimit() != 0 {
		t.Errorf("memory: %v", got)
	}
}

func TestBlkio(t *testing.T) {
	got := blkio(group(t, map[string]string{"io.stat": "254:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0 cost.usage=9\n8:16\nbad line\n"}))
	if n := len(got.GetIoServiceBytesRecursive()); n != 3 {
		t.Fatalf("%d entries of bytes", n)
	}
	for _, e := range got.GetIoServicedRecursive() {
		if e.GetMajor() != 254 || e.GetMinor() != 0 || e.GetOp() == "Write" && e.GetValue() != 4 {
			t.Errorf("entry: %v", e)
		}
	}
}

func TestHugetlb(t *testing.T) {
	got := hugetlb(group(t, map[string]string{"hugetlb.2MB.current": "5\n", "hugetlb.2MB.events": "max 6\n", "hugetlb.2MB.rsvd.current": "7\n"}))
	if len(got) != 1 || got["2MB"].GetUsage() != 5 || got["2MB"].GetFailcnt() != 6 {
		t.Errorf("got %v", got)
	}
}

func TestOtherHierarchies(t *testing.T) {
	r := Root(t.TempDir())
	if _, err := r.Stats("/coffer/c1"); !errdefs.IsNotImplemented(err) {
		t.Errorf("figures: %v", err)
	}
	if err := r.Remove(t.Context(), "/coffer/c1"); err != nil {
		t.Errorf("remove: %v", err)
	}
	if got, want := r.Dir("/../../etc"), string(r)+"/etc"; got != want {
		t.Errorf("folder: %s", got)
	}
}
