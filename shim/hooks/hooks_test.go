package hooks

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// write is a hook that appends a word and its input to a file.
func write(path, word string) specs.Hook {
	return specs.Hook{Path: "/bin/sh", Args: []string{"sh", "-c", `{ echo "$WORD"; /bin/cat; echo; } >> "$0"`, path}, Env: []string{"WORD=" + word}}
}

func TestOrderAndState(t *testing.T) {
	path := filepath.Join(t.TempDir(), "out")
	state := specs.State{Version: specs.Version, ID: "c1", Status: specs.StateCreating, Pid: 42, Bundle: t.TempDir()}
	hooks := &specs.Hooks{
		Prestart: []specs.Hook{write(path, "first")}, CreateRuntime: []specs.Hook{write(path, "second"), write(path, "third")}, //nolint:staticcheck // in use
		StartContainer: []specs.Hook{write(path, "inside")}, Poststop: []specs.Hook{write(path, "last")},
	}
	if err := Create(t.Context(), hooks, state); err != nil {
		t.Fatal(err)
	}
	if err := Poststop(t.Context(), hooks, state); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(raw)), "\n")
	if len(lines) != 8 {
		t.Fatalf("hooks wrote %q", raw)
	}
	for i, word := range []string{"first", "second", "third", "last"} {
		var got specs.State
		if err := json.Unmarshal([]byte(lines[2*i+1]), &got); err != nil || lines[2*i] != word || got.ID != "c1" || got.Pid != 42 || got.Bundle != state.Bundle {
			t.Errorf("hook %d wrote %q and was told %+v, %v", i, lines[2*i], got, err)
		}
	}
}

func TestNoHooks(t *testing.T) {
	if err := errors.Join(Create(t.Context(), nil, specs.State{}), Poststop(t.Context(), nil, specs.State{})); err != nil {
		t.Error(err)
	}
}

func TestFaults(t *testing.T) {
	second, negative := 1, -1
	path := filepath.Join(t.TempDir(), "out")
	for name, test := range map[string]struct {
		hook specs.Hook
		want error
		text string
	}{
		"fails":          {hook: specs.Hook{Path: "/bin/sh", Args: []string{"sh", "-c", "echo no network >&2; exit 3"}}, text: "exit status 3: no network"},
		"hangs":          {hook: specs.Hook{Path: "/bin/sh", Args: []string{"sh", "-c", "exec /bin/sleep 1000"}, Timeout: &second}, want: context.DeadlineExceeded},
		"is missing":     {hook: specs.Hook{Path: "/no/such/hook"}, want: os.ErrNotExist},
		"relative path":  {hook: specs.Hook{Path: "sh"}, want: errdefs.ErrInvalidArgument},
		"time-out below": {hook: specs.Hook{Path: "/bin/sh", Timeout: &negative}, want: errdefs.ErrInvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			err := Create(t.Context(), &specs.Hooks{CreateRuntime: []specs.Hook{test.hook, write(path, "after")}}, specs.State{Bundle: "/"})
			if err == nil || test.want != nil && !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.text) {
				t.Errorf("got %v", err)
			}
			if _, err := os.Stat(path); err == nil {
				t.Error("went on after a failure")
			}
		})
	}
	failing := specs.Hook{Path: "/bin/false"}
	err := Poststop(t.Context(), &specs.Hooks{Poststop: []specs.Hook{failing, write(path, "after")}}, specs.State{Bundle: "/"})
	if _, missing := os.Stat(path); err == nil || missing != nil {
		t.Errorf("the hook after a failed one did not run, or the failure was lost: %v, %v", err, missing)
	}
}
