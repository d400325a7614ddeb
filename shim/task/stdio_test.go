package task

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func fifo(t *testing.T, name string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestOpenStdioFaults(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		paths   paths
		wantErr error
	}{
		"missing stdin":  {paths: paths{stdin: file + "-none"}, wantErr: errdefs.ErrNotFound},
		"missing stdout": {paths: paths{stdout: file + "-none"}, wantErr: errdefs.ErrNotFound},
		"stdin no fifo":  {paths: paths{stdin: file}, wantErr: errdefs.ErrInvalidArgument},
		"stdout no fifo": {paths: paths{stdout: file}, wantErr: errdefs.ErrInvalidArgument},
		"stream":         {paths: paths{stderr: "streaming+unix:///run/s"}, wantErr: errdefs.ErrNotImplemented},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := openStdio(t.Context(), test.paths, "c1"); !errors.Is(err, test.wantErr) {
				t.Errorf("error is %v, want %v", err, test.wantErr)
			}
		})
	}
}

// TestStdioDoesNotWait: opening waits for no client, and closing ends a read that waits.
func TestStdioDoesNotWait(t *testing.T) {
	s, err := openStdio(t.Context(), paths{stdin: fifo(t, "in"), stdout: fifo(t, "out"), stderr: fifo(t, "err")}, "c1")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		_, err := s.stdin.Read(make([]byte, 1))
		ended <- err
	}()
	s.close()
	s.close()
	if err := <-ended; !errors.Is(err, os.ErrClosed) && !errors.Is(err, io.EOF) {
		t.Errorf("a read that waited ended with %v", err)
	}
}

// TestOutputFile is what `ctr run --log-uri file://` wants.
func TestOutputFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "folder", "log")
	for _, text := range []string{"one ", "two"} {
		o, err := openOutput("file://" + path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := o.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		o.close()
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != "one two" {
		t.Errorf("log is %q, %v", got, err)
	}
}

// TestOutputSurvivesReader: a client that goes away and comes back, as containerd does, loses nothing and breaks nothing.
func TestOutputSurvivesReader(t *testing.T) {
	path := fifo(t, "out")
	o, err := openOutput(path)
	if err != nil {
		t.Fatal(err)
	}
	defer o.close()
	for _, text := range []string{"before", "after"} {
		client, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := o.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		buffer := make([]byte, 16)
		n, err := client.Read(buffer)
		if err != nil || string(buffer[:n]) != text {
			t.Errorf("client read %q, %v, want %q", buffer[:n], err, text)
		}
		client.Close()
	}
}
