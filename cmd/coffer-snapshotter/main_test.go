package main

import (
	"bytes"
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/coffer-project/coffer/snapshotter/config"
)

// none are no arguments.
type none struct{ cli.Args }

func (none) Present() bool { return false }

// TestRun starts the program as systemd does, and stops it.
func TestRun(t *testing.T) {
	dir := t.TempDir()
	socket, file := filepath.Join(dir, "run", "sock"), filepath.Join(dir, "config")
	text := "root = '" + filepath.Join(dir, "state") + "'\naddress = '" + socket + "'\n[log]\nlevel = 'error'\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	systemd, err := net.ListenPacket("unixgram", filepath.Join(dir, "notify"))
	if err != nil {
		t.Fatal(err)
	}
	defer systemd.Close()
	if err := systemd.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	t.Setenv("NOTIFY_SOCKET", filepath.Join(dir, "notify"))
	told := func() string {
		buf := make([]byte, 100)
		n, _, err := systemd.ReadFrom(buf)
		if err != nil {
			t.Fatalf("systemd was told nothing: %v", err)
		}
		return string(buf[:n])
	}

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- run(ctx, none{}, file) }()
	if got := told(); got != "READY=1" {
		t.Fatalf("systemd was told %q", got)
	}
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatalf("ready, but: %v", err)
	}
	_ = conn.Close()
	if err := run(ctx, none{}, file); err == nil {
		t.Error("a second one started on the same state")
	}
	cancel()
	if got := told(); got != "STOPPING=1" {
		t.Errorf("systemd was told %q", got)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(socket); !os.IsNotExist(err) {
		t.Errorf("the socket is still there: %v", err)
	}
}

func TestConfigCommands(t *testing.T) {
	faulty := filepath.Join(t.TempDir(), "faulty")
	if err := os.WriteFile(faulty, []byte("x = 1\ny = 2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		args         []string
		want, wantIn string
	}{
		"default":                 {args: []string{"config", "default"}, want: config.DefaultText()},
		"validate a faulty file":  {args: []string{"config", "validate", faulty}, wantIn: "y: no such key"},
		"validate by the flag":    {args: []string{"--config", faulty, "config", "validate"}, wantIn: "x: no such key"},
		"validate a missing file": {args: []string{"config", "validate", faulty + "x"}, wantIn: "no such file"},
		"unknown command":         {args: []string{"sing"}, wantIn: "unknown command"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			a := app()
			a.Writer = &out
			err := a.RunContext(t.Context(), append([]string{"coffer-snapshotter"}, tc.args...))
			if tc.wantIn != "" {
				if err == nil || !strings.Contains(err.Error(), tc.wantIn) {
					t.Fatalf("got %v, want %q in it", err, tc.wantIn)
				}
				return
			}
			if err != nil || out.String() != tc.want {
				t.Fatalf("got %q, %v", out.String(), err)
			}
		})
	}
}
