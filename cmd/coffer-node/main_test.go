package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/cmd/internal/args"
)

// run runs the app and returns what it wrote.
func run(t *testing.T, line ...string) (string, error) {
	t.Helper()
	var out strings.Builder
	node := app(&out)
	err := node.RunContext(t.Context(), args.FlagsFirst(node, append([]string{"coffer-node"}, line...)))
	return out.String(), err
}

func TestConfig(t *testing.T) {
	dir := t.TempDir()
	for _, what := range []string{"shim", "snapshotter"} {
		text, err := run(t, "config", "default", what)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, what+".toml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if text, err := run(t, "config", "validate", what, path); err != nil || text != "the configuration is valid\n" {
			t.Errorf("validate %s: %q, %v", what, text, err)
		}
		if err := os.WriteFile(path, []byte("colour = 1\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := run(t, "config", "validate", what, path); err == nil || !strings.Contains(err.Error(), "colour") {
			t.Errorf("validate a broken %s: %v", what, err)
		}
	}
	for _, line := range [][]string{{"config", "default"}, {"config", "default", "x"}, {"config", "validate"}, {"config", "validate", "shim", "a", "b"}} {
		if _, err := run(t, line...); err == nil || !strings.Contains(err.Error(), "usage") {
			t.Errorf("%q: %v", line, err)
		}
	}
}

// TestNoPods: commands about pods on a node without any.
func TestNoPods(t *testing.T) {
	config := filepath.Join(t.TempDir(), "shim.toml")
	if err := os.WriteFile(config, []byte("state_dir = \""+t.TempDir()+"\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if text, err := run(t, "ps", "--config", config); err != nil || strings.Count(text, "\n") != 1 {
		t.Errorf("ps: %q, %v", text, err)
	}
	if text, err := run(t, "pulls", "--config", config); err != nil || strings.Count(text, "\n") != 1 {
		t.Errorf("pulls: %q, %v", text, err)
	}
	if text, err := run(t, "pulls", "--json", "--config", config); err != nil || text != "[]\n" {
		t.Errorf("pulls --json: %q, %v", text, err)
	}
	if _, err := run(t, "pulls", "--json", "--watch", "--config", config); err == nil || !strings.Contains(err.Error(), "usage") {
		t.Errorf("pulls --json --watch: %v", err)
	}
	if text, err := run(t, "ps", "--json", "--config", config); err != nil || text != "[]\n" {
		t.Errorf("ps --json: %q, %v", text, err)
	}
	if text, err := run(t, "clean", "--config", config); err != nil || text != "" {
		t.Errorf("clean: %q, %v", text, err)
	}
	if _, err := run(t, "console", "web", "--config", config); err == nil || !strings.Contains(err.Error(), "cofferctl ps") {
		t.Errorf("console: %v", err)
	}
	for name, line := range map[string][]string{"no pod": {"console"}, "too many lines": {"console", "web", "--lines", "70000"}} {
		if _, err := run(t, line...); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
