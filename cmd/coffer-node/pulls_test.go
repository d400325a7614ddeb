package main

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/coffer-project/coffer/node/pods"
)

func somePulls() []pods.Pull {
	return []pods.Pull{
		{
			Pod: "default/web", Sandbox: "s1", Container: "0123456789abcdef", Image: "r.example/team/web:1", Phase: "fetch", Layers: 3, LayersDone: 1,
			Bytes: 1 << 20, TotalBytes: 4 << 20, BytesPerSecond: 2 << 20, Micros: 1_500_000,
		},
		{Pod: "default/db", Sandbox: "s2", Container: "c2", Image: "r.example/db:1", Phase: "done", Layers: 1, LayersDone: 1, TotalBytes: 2000, Micros: 90_000_000},
	}
}

func TestPullsTable(t *testing.T) {
	var out strings.Builder
	if err := writePulls(&out, somePulls()); err != nil {
		t.Fatal(err)
	}
	const want = `POD          CONTAINER      IMAGE                 PHASE  LAYERS  FETCHED  OF       RATE       TIME
default/web  0123456789abc  r.example/team/web:1  fetch  1/3     1.0 MiB  4.0 MiB  2.0 MiB/s  1.5s
default/db   c2             r.example/db:1        done   1/1     0 B      2.0 KiB  -          1m30s
`
	if out.String() != want {
		t.Errorf("got\n%swant\n%s", out.String(), want)
	}
}

// TestWatchPulls: without a terminal there is a line for each change, and the end of the context is no error.
func TestWatchPulls(t *testing.T) {
	var out strings.Builder
	ctx, cancel := context.WithCancel(t.Context())
	pulls, looks := somePulls(), 0
	err := watchPulls(ctx, &out, func() ([]pods.Pull, error) {
		switch looks++; looks {
		case 3:
			pulls[0].Phase, pulls[0].Bytes, pulls[0].LayersDone = "done", 4<<20, 3
		case 5:
			cancel()
		}
		return pulls, nil
	}, time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 3 || !strings.HasPrefix(lines[0], "default/web web:1  [######..................]  25 %  fetch") || !strings.Contains(lines[2], "100 %  done") {
		t.Errorf("written:\n%s", out.String())
	}
	fault := errors.New("no state directory")
	if err := watchPulls(t.Context(), &out, func() ([]pods.Pull, error) { return nil, fault }, time.Millisecond); !errors.Is(err, fault) {
		t.Errorf("error: %v", err)
	}
}

func TestBars(t *testing.T) {
	if lines := bars(somePulls()); len(lines) != 1 || !strings.Contains(lines[0], "2.0 MiB/s") {
		t.Errorf("lines: %q", lines)
	}
	if lines := bars(somePulls()[1:]); len(lines) != 1 || !strings.Contains(lines[0], "no image is being pulled; 1 ") {
		t.Errorf("lines: %q", lines)
	}
}
