package require

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// recorder is a test that notes how it ended.
type recorder struct {
	testing.TB
	ended string
}

func (r *recorder) Helper() {}

func (r *recorder) Skip(args ...any) { r.end("skip: " + fmt.Sprint(args...)) }

func (r *recorder) Fatal(args ...any) { r.end("fail: " + fmt.Sprint(args...)) }

func (r *recorder) end(how string) {
	r.ended = how
	runtime.Goexit()
}

// ends runs a test's needs and returns how they ended it; empty: they did not.
func ends(t *testing.T, needs func(testing.TB)) string {
	t.Helper()
	r := &recorder{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		needs(r)
	}()
	<-done
	return r.ended
}

func TestNeeds(t *testing.T) {
	cache := t.TempDir()
	for _, name := range []string{"linux-1.deb", "linux-2.deb"} {
		if err := os.WriteFile(filepath.Join(cache, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("COFFER_CACHE", cache)
	program := func(tb testing.TB) { Program(tb, "/nonexistent/runc", "run make setup") }
	for name, tc := range map[string]struct {
		tier, require string
		needs         func(testing.TB)
		want          string
	}{
		"a program that is missing":  {needs: program, want: "skip: needs /nonexistent/runc: run make setup"},
		"and is required":            {require: "1", needs: program, want: "fail: needs /nonexistent/runc: run make setup"},
		"a program":                  {require: "1", needs: func(tb testing.TB) { Program(tb, "sh", "install a shell") }},
		"a file that is missing":     {needs: func(tb testing.TB) { Cached(tb, "bin/runc") }, want: "skip: needs " + cache + "/bin/runc: run make setup"},
		"a VM in the unit tier":      {tier: "unit", require: "1", needs: func(tb testing.TB) { VM(tb) }, want: "skip: COFFER_TEST_TIER=unit"},
		"root in the unit tier":      {tier: "unit", needs: Root, want: "skip: COFFER_TEST_TIER=unit"},
		"a program in the unit tier": {tier: "unit", needs: program, want: "skip: needs /nonexistent/runc"},
		"the last of several files": {require: "1", needs: func(tb testing.TB) {
			if got := Cached(tb, "linux-*.deb"); got != filepath.Join(cache, "linux-2.deb") {
				tb.Errorf("got %s", got)
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("COFFER_TEST_TIER", tc.tier)
			t.Setenv("COFFER_REQUIRE", tc.require)
			if got := ends(t, tc.needs); !strings.HasPrefix(got, tc.want) || (got == "") != (tc.want == "") {
				t.Errorf("ended with %q, want %q", got, tc.want)
			}
		})
	}
}
