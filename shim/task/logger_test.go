package task

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
)

// loggerMode, as first argument, makes the test binary a logger program.
const loggerMode = "coffer-test-logger"

func TestMain(m *testing.M) {
	if len(os.Args) > 4 && os.Args[1] == loggerMode {
		os.Exit(beLogger(os.Args[2], os.Args[4]))
	}
	os.Exit(m.Run())
}

// beLogger writes what it is told, and how it ended, to a file in a folder.
func beLogger(kind, dir string) int {
	if kind == "crash" {
		return 3
	}
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, syscall.SIGTERM)
	ready := os.NewFile(5, "ready")
	if kind == "shim" { // no logger, but what starts one and is killed
		ctx := namespaces.WithNamespace(context.Background(), "ns")
		if _, err := startLogger(ctx, loggerURI("binary", "waits", dir), "ns", "c1"); err != nil {
			fmt.Println(err)
			return 1
		}
		fmt.Println("up")
		<-asked
		return 0
	}
	file, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return 1
	}
	fmt.Fprintf(file, "of %s in %s, args %d, env %d\n", os.Getenv("CONTAINER_ID"), os.Getenv("CONTAINER_NAMESPACE"), len(os.Args), len(os.Environ()))
	if kind == "never ready" {
		<-asked
		return 0
	}
	_, _ = ready.Write([]byte{0})
	ready.Close()
	var readers sync.WaitGroup
	for fd, name := range map[uintptr]string{3: "stdout", 4: "stderr"} {
		readers.Go(func() {
			text, err := io.ReadAll(os.NewFile(fd, name))
			fmt.Fprintf(file, "%s %q %v\n", name, text, err)
		})
	}
	readers.Wait()
	switch kind {
	case "deaf":
		fmt.Fprintln(file, "deaf")
		for range asked { // hears, and does nothing
		}
	case "waits":
		<-asked
		fmt.Fprintln(file, "asked to end")
	}
	return 0
}

func loggerURI(scheme, kind, dir string) string {
	path, err := os.Executable()
	if err != nil {
		panic(err)
	}
	return scheme + "://" + path + "?" + loggerMode + "=" + url.QueryEscape(kind) + "&dir=" + url.QueryEscape(dir)
}

// loggerLog is what the logger program has written, in the order of the alphabet.
func loggerLog(t *testing.T, dir string) []string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	return slices.Sorted(strings.SplitSeq(strings.TrimSpace(string(raw)), "\n"))
}

func TestParseLogger(t *testing.T) {
	for name, test := range map[string]struct {
		uri     string
		path    string
		args    []string
		wantErr error
	}{
		"plain":            {uri: "binary:///bin/log", path: "/bin/log"},
		"arguments":        {uri: "binary:///bin/log?z=1&a=x%20y&flag", path: "/bin/log", args: []string{"z", "1", "a", "x y", "flag", ""}},
		"key twice":        {uri: "binary:///bin/log?a=1&a=2&b=3", path: "/bin/log", args: []string{"a", "1", "b", "3"}},
		"telling":          {uri: "binary-v2:///bin/my%20log", path: "/bin/my log"},
		"relative":         {uri: "binary://bin/log", wantErr: errdefs.ErrInvalidArgument},
		"no path":          {uri: "binary://", wantErr: errdefs.ErrInvalidArgument},
		"broken arguments": {uri: "binary:///bin/log?a=%zz", wantErr: errdefs.ErrInvalidArgument},
		"no URI":           {uri: "binary:///bin/%zz", wantErr: errdefs.ErrInvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := parseLogger(test.uri)
			if !errors.Is(err, test.wantErr) {
				t.Fatalf("error is %v, want %v", err, test.wantErr)
			}
			if err == nil && (got.path != test.path || !slices.Equal(got.args, test.args)) {
				t.Errorf("got %q %q", got.path, got.args)
			}
		})
	}
}

// TestLogger gives a program both outputs, or with a terminal the only one.
func TestLogger(t *testing.T) {
	for name, terminal := range map[string]bool{"pipes": false, "terminal": true} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			uri := loggerURI("binary-v2", "good", dir)
			s, err := openStdio(namespaces.WithNamespace(t.Context(), "ns"), paths{stdout: uri, stderr: uri, terminal: terminal}, "c1")
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprint(s.stdout, "hello")
			fmt.Fprint(s.stderr, "oops") // goes nowhere with a terminal
			s.close()
			s.close()
			s.wait()
			errors := `stderr "oops" <nil>`
			if terminal {
				errors = `stderr "" <nil>`
			}
			if got, want := loggerLog(t, dir), []string{"of c1 in ns, args 5, env 2", errors, `stdout "hello" <nil>`}; !slices.Equal(got, want) {
				t.Errorf("got %q, want %q", got, want)
			}
			if code := s.logger.cmd.ProcessState.ExitCode(); code != 0 {
				t.Errorf("the program ended with %d", code)
			}
		})
	}
}

// TestLoggerEnd: a program that does not end with its input is asked to, then killed.
func TestLoggerEnd(t *testing.T) {
	for kind, test := range map[string]struct {
		state, last string
		grace       time.Duration
	}{
		"waits": {"exit status 0", "asked to end", 3 * time.Second},
		"deaf":  {"signal: killed", "deaf", 200 * time.Millisecond},
	} {
		t.Run(kind, func(t *testing.T) {
			dir := t.TempDir()
			l, err := startLogger(t.Context(), loggerURI("binary", kind, dir), "ns", "c1")
			if err != nil {
				t.Fatal(err)
			}
			l.grace = test.grace
			l.close()
			l.wait()
			if got := l.cmd.ProcessState.String(); got != test.state {
				t.Errorf("the program ended with %s, want %s", got, test.state)
			}
			if got := loggerLog(t, dir); !slices.Contains(got, test.last) {
				t.Errorf("got %q, want %q in it", got, test.last)
			}
		})
	}
}

// TestLoggerLost: what is written after the program's end is an error, which the copy of the output survives.
func TestLoggerLost(t *testing.T) {
	l, err := startLogger(t.Context(), loggerURI("binary", "crash", t.TempDir()), "ns", "c1")
	if err != nil {
		t.Fatal(err) // by the older contract, a program that ends at once counts as ready
	}
	<-l.done
	o := newOutput(l.stdout)
	if _, err := o.Write([]byte("lost")); !errors.Is(err, syscall.EPIPE) || !o.failed.Load() {
		t.Errorf("writing gave %v, failed is %t", err, o.failed.Load())
	}
	l.close()
	l.wait()
}

func TestLoggerFaults(t *testing.T) {
	dir := t.TempDir()
	crash := loggerURI("binary-v2", "crash", dir)
	for name, test := range map[string]struct {
		paths   paths
		wantErr error
		says    string
	}{
		"no program":     {paths{stdout: "binary://" + dir + "/none"}, errdefs.ErrFailedPrecondition, "no such file"},
		"no executable":  {paths{stdout: "binary://" + dir}, errdefs.ErrFailedPrecondition, "permission denied"},
		"crash":          {paths{stdout: crash}, errdefs.ErrFailedPrecondition, "without a byte"},
		"never ready":    {paths{stdout: loggerURI("binary", "never ready", dir)}, context.DeadlineExceeded, "descriptor 5"},
		"stderr only":    {paths{stderr: crash}, errdefs.ErrInvalidArgument, "both outputs"},
		"two programs":   {paths{stdout: loggerURI("binary", "good", dir), stderr: crash}, errdefs.ErrInvalidArgument, "both outputs"},
		"stderr no FIFO": {paths{stdout: loggerURI("binary", "good", dir), stderr: dir}, errdefs.ErrInvalidArgument, "no FIFO"},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(namespaces.WithNamespace(t.Context(), "ns"), time.Second)
			defer cancel()
			_, err := openStdio(ctx, test.paths, "c1")
			if !errors.Is(err, test.wantErr) || !strings.Contains(err.Error(), test.says) {
				t.Errorf("error is %v, want %v that says %q", err, test.wantErr, test.says)
			}
		})
	}
}

// TestLoggerOutlivesNoShim kills a shim: its logger program is asked to end.
func TestLoggerOutlivesNoShim(t *testing.T) {
	dir := t.TempDir()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	shim := exec.CommandContext(t.Context(), path, loggerMode, "shim", "dir", dir)
	out, err := shim.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := shim.Start(); err != nil {
		t.Fatal(err)
	}
	up := make([]byte, 3)
	if _, err := io.ReadFull(out, up); err != nil || string(up) != "up\n" {
		t.Fatalf("the shim says %q, %v", up, err)
	}
	if err := shim.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = shim.Wait()
	for deadline := time.Now().Add(10 * time.Second); !slices.Contains(loggerLog(t, dir), "asked to end"); {
		if time.Now().After(deadline) {
			t.Fatalf("the program was not asked to end: %q", loggerLog(t, dir))
		}
		<-time.After(10 * time.Millisecond)
	}
}
