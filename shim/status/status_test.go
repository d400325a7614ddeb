package status

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

// fakeSource has a console whose lines the test sends.
type fakeSource struct {
	err   error
	kept  []string
	later chan string
}

func (f *fakeSource) Status() any { return map[string]string{"state": "running"} }

func (f *fakeSource) ConsoleFrom(ctx context.Context, from uint64) ([]string, uint64, error) {
	if f.err != nil {
		return nil, 0, f.err
	}
	if from < uint64(len(f.kept)) {
		return f.kept[from:], uint64(len(f.kept)), nil
	}
	select {
	case line, ok := <-f.later:
		if !ok {
			return nil, from, io.EOF
		}
		return []string{line}, from + 1, nil
	case <-ctx.Done():
		return nil, from, ctx.Err()
	}
}

func serve(t *testing.T, source Source) string {
	t.Helper()
	dir := t.TempDir()
	server, err := Serve(t.Context(), dir, source)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	return dir
}

func TestReport(t *testing.T) {
	dir := serve(t, &fakeSource{})
	var got struct {
		State string `json:"state"`
	}
	if err := Report(t.Context(), dir, &got); err != nil || got.State != "running" {
		t.Errorf("got %+v, %v", got, err)
	}
	info, err := os.Stat(Socket(dir))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v; want it to be root's alone", info, err)
	}
}

func TestConsole(t *testing.T) {
	kept := []string{"one", "two", "three"}
	for name, test := range map[string]struct {
		source  *fakeSource
		lines   uint16
		want    string
		wantErr error
	}{
		"all":        {&fakeSource{kept: kept}, 0, "one\ntwo\nthree\n", nil},
		"last":       {&fakeSource{kept: kept}, 2, "two\nthree\n", nil},
		"none yet":   {&fakeSource{later: make(chan string)}, 0, "", nil},
		"forbidden":  {&fakeSource{err: fmt.Errorf("set show_console: %w", errdefs.ErrPermissionDenied)}, 0, "", errdefs.ErrPermissionDenied},
		"no console": {&fakeSource{err: fmt.Errorf("no guest yet: %w", errdefs.ErrFailedPrecondition)}, 0, "", errdefs.ErrFailedPrecondition},
	} {
		t.Run(name, func(t *testing.T) {
			text, err := Console(t.Context(), serve(t, test.source), test.lines, false)
			if !errors.Is(err, test.wantErr) {
				t.Fatalf("got %v, want %v", err, test.wantErr)
			}
			if err != nil {
				if n := strings.Count(err.Error(), test.wantErr.Error()); n != 1 {
					t.Errorf("%v: it says %q %d times", err, test.wantErr, n)
				}
				return
			}
			defer text.Close()
			if got, err := io.ReadAll(text); err != nil || string(got) != test.want {
				t.Errorf("got %q, %v; want %q", got, err, test.want)
			}
		})
	}
}

func TestFollow(t *testing.T) {
	source := &fakeSource{kept: []string{"old", "kept"}, later: make(chan string)}
	text, err := Console(t.Context(), serve(t, source), 1, true)
	if err != nil {
		t.Fatal(err)
	}
	defer text.Close()
	lines := bufio.NewScanner(text)
	for _, want := range []string{"kept", "new", "newer"} {
		if want != "kept" {
			source.later <- want
		}
		if !lines.Scan() || lines.Text() != want {
			t.Fatalf("got %q, %v; want %q", lines.Text(), lines.Err(), want)
		}
	}
	close(source.later)
	if lines.Scan() || lines.Err() != nil {
		t.Errorf("got %q, %v after the end", lines.Text(), lines.Err())
	}
}

func TestNoShim(t *testing.T) {
	dead := t.TempDir()
	listener, err := net.Listen("unix", Socket(dead))
	if err != nil {
		t.Fatal(err)
	}
	listener.(*net.UnixListener).SetUnlinkOnClose(false)
	listener.Close()
	for name, dir := range map[string]string{"no socket": t.TempDir(), "dead": dead} {
		t.Run(name, func(t *testing.T) {
			if err := Report(t.Context(), dir, new(any)); !errors.Is(err, errdefs.ErrUnavailable) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestLongPath(t *testing.T) {
	_, err := Serve(t.Context(), "/"+strings.Repeat("d", maxSocketPath), &fakeSource{})
	if !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("got %v", err)
	}
}
