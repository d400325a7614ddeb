package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/coffer-project/coffer/integration/harness"
	"github.com/coffer-project/coffer/proto/volume"
)

// shimLab drives the shim of a pod by its own socket, in containerd's place.
type shimLab struct {
	*lab
	tasks taskapi.TTRPCTaskService
	empty string
	ids   int
}

func newShimLab(t *testing.T, node *harness.Node, image string) *shimLab {
	t.Helper()
	l := &shimLab{lab: newLab(t, node, "coffer", image, nil), empty: t.TempDir()}
	client, err := node.DialShim(t.Context(), l.pod)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	l.tasks = taskapi.NewTTRPCTaskClient(client)
	return l
}

func (l *shimLab) ctx(t *testing.T) context.Context {
	t.Helper()
	return ttrpc.WithMetadata(namespaces.WithNamespace(l.lab.ctx(t), "k8s.io"), ttrpc.MD{})
}

// program is a process that the test has prepared in the shim: a container's first, or an exec.
type program struct {
	l        *shimLab
	id, exec string
	dir      string
	stdin    bool
	out, err chan string // what it has written, once it has closed the stream
}

// streams makes the FIFOs of a process and reads its output to the end, as a client of containerd's does.
func (l *shimLab) streams(t *testing.T, stdin bool) *program {
	t.Helper()
	p := &program{l: l, dir: t.TempDir(), stdin: stdin, out: make(chan string, 1), err: make(chan string, 1)}
	for _, name := range []string{"stdin", "stdout", "stderr"} {
		if err := syscall.Mkfifo(p.path(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, into := range map[string]chan string{"stdout": p.out, "stderr": p.err} {
		// Without waiting for a writer: the shim is the next to open it.
		file, err := os.OpenFile(p.path(name), os.O_RDONLY|syscall.O_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { file.Close() })
		// A reader before the first writer would see the end at once, so it begins when the shim has opened its side.
		go func() {
			<-l.opened(p, name)
			data, err := io.ReadAll(file)
			if err != nil {
				data = fmt.Append(data, err)
			}
			into <- string(data)
		}()
	}
	return p
}

func (p *program) path(name string) string { return filepath.Join(p.dir, name) }

// opened is closed once somebody has the FIFO open for writing.
func (l *shimLab) opened(p *program, name string) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		defer close(done)
		// Opening for reading and waiting returns with the first writer.
		file, err := os.OpenFile(p.path(name), os.O_RDONLY, 0)
		if err == nil {
			file.Close()
		}
	}()
	return done
}

func (p *program) stdinPath() string {
	if p.stdin {
		return p.path("stdin")
	}
	return ""
}

// create makes a container that runs command.
func (l *shimLab) newTask(t *testing.T, stdin bool, command ...string) *program {
	t.Helper()
	p := l.streams(t, stdin)
	l.ids++
	p.id = fmt.Sprintf("task-%d", l.ids)
	if _, err := l.tasks.Create(l.ctx(t), l.request(t, p, command)); err != nil {
		t.Fatal(native(err))
	}
	t.Cleanup(func() { p.discard() })
	return p
}

func (l *shimLab) request(t *testing.T, p *program, command []string) *taskapi.CreateTaskRequest {
	t.Helper()
	bundle := t.TempDir()
	spec := specs.Spec{
		Version: specs.Version,
		Process: &specs.Process{Args: command, Cwd: "/", Env: []string{"PATH=/bin"}},
		Root:    &specs.Root{Path: "rootfs"},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "mode=755"}},
		},
		Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.NetworkNamespace}}},
	}
	raw, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bundle, "config.json"), raw, 0o600); err != nil {
		t.Fatal(err)
	}
	option, err := (&volume.Volume{
		VolumeType: volume.TypeImageGuestPull, Source: l.image, ImagePull: &volume.ImagePull{},
	}).Option()
	if err != nil {
		t.Fatal(err)
	}
	return &taskapi.CreateTaskRequest{
		ID: p.id, Bundle: bundle, Stdin: p.stdinPath(), Stdout: p.path("stdout"), Stderr: p.path("stderr"),
		Rootfs: []*types.Mount{{Type: "bind", Source: l.empty, Options: []string{"rbind", "ro", option}}},
	}
}

// run creates and starts a container.
func (l *shimLab) runTask(t *testing.T, stdin bool, command ...string) *program {
	t.Helper()
	p := l.newTask(t, stdin, command...)
	p.start(t)
	return p
}

// newExec prepares a further process of a container.
func (p *program) newExec(t *testing.T, stdin bool, command ...string) *program {
	t.Helper()
	e := p.l.streams(t, stdin)
	p.l.ids++
	e.id, e.exec = p.id, fmt.Sprintf("exec-%d", p.l.ids)
	if err := p.l.addExec(t, e, command); err != nil {
		t.Fatal(native(err))
	}
	return e
}

func (l *shimLab) addExec(t *testing.T, e *program, command []string) error {
	t.Helper()
	raw, err := json.Marshal(specs.Process{Args: command, Cwd: "/", Env: []string{"PATH=/bin"}})
	if err != nil {
		t.Fatal(err)
	}
	_, err = l.tasks.Exec(l.ctx(t), &taskapi.ExecProcessRequest{
		ID: e.id, ExecID: e.exec, Stdin: e.stdinPath(), Stdout: e.path("stdout"), Stderr: e.path("stderr"), Spec: &anypb.Any{Value: raw},
	})
	return err
}

// runExec runs a further process.
func (p *program) runExec(t *testing.T, stdin bool, command ...string) *program {
	t.Helper()
	e := p.newExec(t, stdin, command...)
	e.start(t)
	return e
}

func (p *program) tryStart(t *testing.T) error {
	t.Helper()
	_, err := p.l.tasks.Start(p.l.ctx(t), &taskapi.StartRequest{ID: p.id, ExecID: p.exec})
	return native(err)
}

func (p *program) start(t *testing.T) {
	t.Helper()
	if err := p.tryStart(t); err != nil {
		t.Fatal(err)
	}
}

// wait returns the exit status.
func (p *program) wait(t *testing.T) uint32 {
	t.Helper()
	response, err := p.l.tasks.Wait(p.l.ctx(t), &taskapi.WaitRequest{ID: p.id, ExecID: p.exec})
	if err != nil {
		t.Fatal(native(err))
	}
	return response.GetExitStatus()
}

// ends waits for the process's end, which must be as wanted, and deletes it.
func (p *program) ends(t *testing.T, status uint32, stdout string) {
	t.Helper()
	if got := p.wait(t); got != status {
		t.Errorf("exit status %d, want %d", got, status)
	}
	if got := <-p.out; got != stdout {
		t.Errorf("stdout has %d bytes %.100q, want %d bytes %.100q", len(got), got, len(stdout), stdout)
	}
	response, err := p.l.tasks.Delete(p.l.ctx(t), &taskapi.DeleteRequest{ID: p.id, ExecID: p.exec})
	if err != nil || response.GetExitStatus() != status || response.GetExitedAt() == nil {
		t.Errorf("deleted with %v, %v", response, native(err))
	}
}

func (p *program) kill(t *testing.T, signal syscall.Signal) {
	t.Helper()
	_, err := p.l.tasks.Kill(p.l.ctx(t), &taskapi.KillRequest{ID: p.id, ExecID: p.exec, Signal: uint32(signal)})
	if err != nil {
		t.Error(native(err))
	}
}

// discard removes a container that a failed test may have left; whatever it is, it ends with its pod anyway.
func (p *program) discard() {
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(context.Background(), "k8s.io"), lifeBudget)
	defer cancel()
	_, _ = p.l.tasks.Kill(ctx, &taskapi.KillRequest{ID: p.id, Signal: uint32(syscall.SIGKILL)})
	_, _ = p.l.tasks.Wait(ctx, &taskapi.WaitRequest{ID: p.id})
	_, _ = p.l.tasks.Delete(ctx, &taskapi.DeleteRequest{ID: p.id})
}

// feed opens the standard input for writing.
func (p *program) feed(t *testing.T) *os.File {
	t.Helper()
	file, err := os.OpenFile(p.path("stdin"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	return file
}

// closeStdin tells the shim that no more input comes.
func (p *program) closeStdin(t *testing.T) {
	t.Helper()
	if _, err := p.l.tasks.CloseIO(p.l.ctx(t), &taskapi.CloseIORequest{ID: p.id, ExecID: p.exec, Stdin: true}); err != nil {
		t.Error(native(err))
	}
}

func native(err error) error {
	if err == nil {
		return nil
	}
	return errgrpc.ToNative(err)
}

// lines repeats a line so often that pipes and FIFOs fill many times over.
func lines(n int) string { return strings.Repeat("0123456789abcdef0123456789abcde\n", n) }
