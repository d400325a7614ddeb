package main

import (
	"bytes"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/containerd/console"

	rt "github.com/coffer-project/coffer/integration/registrytest"
	"github.com/coffer-project/coffer/integration/require"
)

// screenText is what was written to a terminal so far.
type screenText struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (s *screenText) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.Write(p)
}

func (s *screenText) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.String()
}

// TestBar pulls in front of a terminal.
func TestBar(t *testing.T) {
	require.Root(t)
	r := rt.Start(t)
	ref, _ := stalled(r)
	master, path, err := console.NewPty()
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	if err := master.Resize(console.WinSize{Width: 100, Height: 25}); err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(path, os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	cmd, _, _ := process(t, "--plain-http", r.Addr(), ref, t.TempDir())
	cmd.Stderr = slave
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	slave.Close()
	var screen screenText
	read := make(chan struct{})
	go func() {
		defer close(read)
		buf := make([]byte, 4096)
		for {
			n, err := master.Read(buf)
			if _, _ = screen.Write(buf[:n]); err != nil {
				return // EIO: nobody has the terminal open any more
			}
		}
	}()
	eventually(t, "the bar shows the layer that is done", func() bool { return strings.Contains(screen.String(), "%  fetch     1/2 layers  ") })
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // its code is another test's
	<-read
	text := screen.String()
	if _, last, ok := strings.Cut(text[strings.LastIndex(text, "layers"):], "\r\x1b[J"); !ok || !strings.HasPrefix(last, "coffer-pull: ") {
		t.Errorf("at the end the terminal shows %q", last)
	}
}
