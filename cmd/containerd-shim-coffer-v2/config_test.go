package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestConfigCommand(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	var complete strings.Builder
	if err := configCommand(&complete, []string{"default"}); err != nil || !strings.Contains(complete.String(), "[hypervisor]") {
		t.Fatalf("default: %v, %q", err, complete.String())
	}
	for name, test := range map[string]struct {
		args []string
		want string // in the error; empty for none
	}{
		"its own default": {args: []string{"validate", file("default.toml", complete.String())}},
		"unknown key":     {args: []string{"validate", file("unknown.toml", "colour = 1")}, want: "colour"},
		"no file":         {args: []string{"validate", filepath.Join(dir, "missing.toml")}, want: "missing.toml"},
		"no command":      {args: nil, want: "usage"},
		"too much":        {args: []string{"default", "x"}, want: "usage"},
	} {
		t.Run(name, func(t *testing.T) {
			var out strings.Builder
			err := configCommand(&out, test.args)
			if test.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q in it", err, test.want)
			}
		})
	}
}
