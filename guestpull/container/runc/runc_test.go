package runc_test

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	agentpb "github.com/coffer-project/coffer/proto/agent"
	"github.com/coffer-project/coffer/proto/oci"
)

func TestRunToEnd(t *testing.T) {
	p := newPod(t, false)
	p.run(t, p.request("c1", "sh", "-c", "hostname; echo problem >&2; exit 3"))
	p.wantExit(t, "c1", "", 3)
	// Output stays readable after the exit, and the end stays the end.
	if got := p.output(t, "c1", "c1", false); got != "pod-name\n" {
		t.Errorf("stdout: %q", got)
	}
	if got := p.output(t, "c1", "", true); got != "problem\n" {
		t.Errorf("stderr: %q", got)
	}
	if got := p.output(t, "c1", "", false); got != "" {
		t.Errorf("after the end: %q", got)
	}
	p.wantExit(t, "c1", "c1", 3)
	must(t, p.Remove(t.Context(), "c1", 0))
	if err := p.Remove(t.Context(), "c1", 0); !errdefs.IsNotFound(err) {
		t.Errorf("second remove: %v", err)
	}
	if _, err := os.Stat(filepath.Join(p.base, "c1")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("folder is left: %v", err)
	}
	if p.images.held["c1"] {
		t.Error("image was not released")
	}
}

func TestStdin(t *testing.T) {
	p := newPod(t, false)
	p.run(t, p.request("c1", "cat"))
	for _, part := range []string{"one\n", "two\n"} {
		n, err := p.Write(t.Context(), "c1", "", []byte(part))
		must(t, err)
		if int(n) != len(part) {
			t.Errorf("wrote %d of %d", n, len(part))
		}
	}
	must(t, p.CloseStdin("c1", ""))
	must(t, p.CloseStdin("c1", ""))
	if got := p.output(t, "c1", "", false); got != "one\ntwo\n" {
		t.Errorf("output: %q", got)
	}
	p.wantExit(t, "c1", "", 0)
	if _, err := p.Write(t.Context(), "c1", "", []byte("late")); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("write after close: %v", err)
	}
}

func TestTerminal(t *testing.T) {
	p := newPod(t, false)
	req := p.request("c1", "sh", "-c", "read line; stty size; tty; echo got $line")
	req.OCI.Process.Terminal = true
	p.run(t, req)
	must(t, p.Resize("c1", "", 40, 132))
	_, err := p.Write(t.Context(), "c1", "", []byte("hello\n"))
	must(t, err)
	got := p.output(t, "c1", "", false)
	for _, want := range []string{"40 132", "/dev/", "got hello"} {
		if !strings.Contains(got, want) {
			t.Errorf("terminal output %q lacks %q", got, want)
		}
	}
	if got := p.output(t, "c1", "", true); got != "" {
		t.Errorf("stderr of a terminal: %q", got)
	}
	p.wantExit(t, "c1", "", 0)
}

func TestSignals(t *testing.T) {
	p := newPod(t, false)
	p.run(t, p.request("c1", "sh", "-c", "trap 'exit 7' TERM; echo ready; while :; do sleep 0.1; done"))
	data, err := p.Read(t.Context(), "c1", "", false, 100)
	must(t, err)
	if string(data) != "ready\n" {
		t.Fatalf("output: %q", data)
	}
	must(t, p.Signal(t.Context(), "c1", "", 15))
	p.wantExit(t, "c1", "", 7)
	if err := p.Signal(t.Context(), "c1", "c1", 15); !errdefs.IsNotFound(err) {
		t.Errorf("signal after exit: %v", err)
	}
	if err := p.Signal(t.Context(), "c1", "", 9); !errdefs.IsNotFound(err) {
		t.Errorf("kill after exit: %v", err)
	}

	p.run(t, p.request("c2", "sleep", "1000"))
	must(t, p.Signal(t.Context(), "c2", "", 9))
	p.wantExit(t, "c2", "", 128+9)
}

func TestExec(t *testing.T) {
	p := newPod(t, false)
	p.run(t, p.request("c1", "sleep", "1000"))
	exec := func(id string, args ...string) *agentpb.ExecProcessRequest {
		return &agentpb.ExecProcessRequest{ContainerId: "c1", ExecId: id,
			Process: &oci.Process{Args: args, Env: []string{"PATH=/bin"}, Cwd: "/", User: &oci.User{}}}
	}
	must(t, p.Exec(t.Context(), exec("e1", "sh", "-c", "cat; exit 5")))
	if err := p.Exec(t.Context(), exec("e1", "true")); !errdefs.IsAlreadyExists(err) {
		t.Errorf("same id again: %v", err)
	}
	_, err := p.Write(t.Context(), "c1", "e1", []byte("x"))
	must(t, err)
	must(t, p.CloseStdin("c1", "e1"))
	if got := p.output(t, "c1", "e1", false); got != "x" {
		t.Errorf("output: %q", got)
	}
	p.wantExit(t, "c1", "e1", 5)

	err = p.Exec(t.Context(), exec("e2", "no-such-program"))
	if !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "no-such-program") {
		t.Errorf("missing program: %v", err)
	}
	// The id of a failed exec is free again.
	named := exec("e2", "id")
	named.Process.User.Username = "app"
	must(t, p.Exec(t.Context(), named))
	if got := p.output(t, "c1", "e2", false); !strings.Contains(got, "uid=1000(app) gid=1001(app)") || !strings.Contains(got, "2000(extra)") {
		t.Errorf("user: %q", got)
	}

	tty := exec("e3", "sh", "-c", "tty; exit 2")
	tty.Process.Terminal = true
	must(t, p.Exec(t.Context(), tty))
	if got := p.output(t, "c1", "e3", false); !strings.Contains(got, "/dev/") {
		t.Errorf("terminal: %q", got)
	}
	p.wantExit(t, "c1", "e3", 2)

	must(t, p.Exec(t.Context(), exec("e4", "sleep", "1000")))
	must(t, p.Signal(t.Context(), "c1", "e4", 15))
	p.wantExit(t, "c1", "e4", 128+15)
	must(t, p.Exec(t.Context(), exec("e5", "sleep", "1000")))
	must(t, p.Remove(t.Context(), "c1", 0)) // with an exec that runs
}

func TestOutputOfChildLeftBehind(t *testing.T) {
	p := newPod(t, false)
	p.run(t, p.request("c1", "sleep", "1000"))
	must(t, p.Exec(t.Context(), &agentpb.ExecProcessRequest{ContainerId: "c1", ExecId: "e1",
		Process: &oci.Process{Args: []string{"sh", "-c", "sleep 1000 & echo done"}, Env: []string{"PATH=/bin"}, Cwd: "/"}}))
	p.wantExit(t, "c1", "e1", 0)
	// The child holds the pipe open; the stream ends nevertheless, with everything that was written.
	if got := p.output(t, "c1", "e1", false); got != "done\n" {
		t.Errorf("output: %q", got)
	}
}

func TestPauseAndResume(t *testing.T) {
	p := newPod(t, false)
	p.run(t, p.request("c1", "sleep", "1000"))
	if err := p.Resume(t.Context(), "c1"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("resume of a running container: %v", err)
	}
	must(t, p.Pause(t.Context(), "c1"))
	must(t, p.Resume(t.Context(), "c1"))
	must(t, p.Pause(t.Context(), "c1"))
	must(t, p.Remove(t.Context(), "c1", 0)) // also while it is paused
}

func TestSharedPIDNamespace(t *testing.T) {
	p := newPod(t, true)
	first := p.request("c1", "sleep", "987")
	first.SandboxPidns = true
	p.run(t, first)
	second := p.request("c2", "ps")
	second.SandboxPidns = true
	p.run(t, second)
	if got := p.output(t, "c2", "", false); !strings.Contains(got, "sleep 987") || !strings.Contains(got, "hold") {
		t.Errorf("processes seen: %q", got)
	}
	must(t, p.Remove(t.Context(), "c1", 0))
}

func TestSandboxContainer(t *testing.T) {
	p := newPod(t, false)
	req := p.request("pod", "/pause")
	req.OCI.Annotations = map[string]string{"io.kubernetes.cri.container-type": "sandbox"}
	req.Storages[0].DriverOptions = []string{`image_guest_pull={"metadata":{"io.kubernetes.cri.container-type":"sandbox"}}`}
	req.Storages[0].Source = "pause"
	p.run(t, req)
	if len(p.images.held) != 0 {
		t.Error("an image was pulled for the sandbox")
	}
	must(t, p.Signal(t.Context(), "pod", "", 15))
	p.wantExit(t, "pod", "", 128+15)
	must(t, p.Remove(t.Context(), "pod", 0))
}

func TestBindIsPinned(t *testing.T) {
	p := newPod(t, false)
	shared := filepath.Join(p.base, "shared/containers")
	file := filepath.Join(shared, "c1-0123456789abcdef-hosts")
	must(t, os.WriteFile(file, []byte("honest\n"), 0o644))
	req := p.request("c1", "cat", "/etc/hosts")
	req.OCI.Mounts = append(req.OCI.Mounts, &oci.Mount{Destination: "/etc/hosts", Type: "bind", Source: file, Options: []string{"rbind", "ro"}})
	must(t, p.Create(t.Context(), req))
	// What the host does to the path after the check has no effect.
	must(t, os.Remove(file))
	must(t, os.Symlink("/etc/shadow", file))
	must(t, p.Start(t.Context(), "c1"))
	if got := p.output(t, "c1", "", false); got != "honest\n" {
		t.Errorf("content: %q", got)
	}
	// A link from the start is refused, and leaves nothing.
	req = p.request("c2", "cat", "/etc/hosts")
	req.OCI.Mounts = append(req.OCI.Mounts, &oci.Mount{Destination: "/etc/hosts", Type: "bind", Source: file, Options: []string{"rbind", "ro"}})
	if err := p.Create(t.Context(), req); !errdefs.IsInvalidArgument(err) {
		t.Errorf("bind of a symbolic link: %v", err)
	}
	if _, err := os.Stat(filepath.Join(p.base, "c2")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("folder is left: %v", err)
	}
}

func TestTerminationLog(t *testing.T) {
	p := newPod(t, false)
	file := filepath.Join(p.base, "shared/containers/c1-0123456789abcdef-termination-log")
	must(t, os.MkdirAll(filepath.Dir(file), 0o755))
	must(t, os.WriteFile(file, nil, 0o666))
	req := p.request("c1", "sh", "-c", "yes 0123456 | head -c 5000 > /dev/termination-log; echo bye >> /dev/termination-log")
	req.OCI.Annotations = map[string]string{"io.kubernetes.container.terminationMessagePath": "/dev/termination-log"}
	req.OCI.Mounts = append(req.OCI.Mounts, &oci.Mount{Destination: "/dev/termination-log", Type: "bind", Source: file, Options: []string{"rbind"}})
	p.run(t, req)
	p.wantExit(t, "c1", "", 0)
	got, err := p.TerminationLog("c1")
	must(t, err)
	if len(got) != 4096 || !strings.HasSuffix(string(got), "0123456\nbye\n") {
		t.Errorf("termination log of %d bytes, not the last 4096: %q", len(got), got)
	}
}

// TestTerminationLogOfOtherFiles is a host that names files as the termination log which it must not see: one of the image, and one
// that another container has left in a volume of the pod.
func TestTerminationLogOfOtherFiles(t *testing.T) {
	p := newPod(t, false)
	volume := filepath.Join(p.base, "sandbox/shm")
	must(t, os.WriteFile(filepath.Join(volume, "secret"), []byte("secret"), 0o600))
	for id, source := range map[string]string{
		"own": filepath.Join(p.base, "own/rootfs/etc/passwd"), "volume": volume + "/secret", "folder": volume,
	} {
		req := p.request(id, "sh", "-c", "cat /etc/passwd; echo bye > /etc/passwd")
		req.OCI.Annotations = map[string]string{"io.kubernetes.container.terminationMessagePath": "/etc/passwd"}
		req.OCI.Mounts = append(req.OCI.Mounts, &oci.Mount{Destination: "/etc/passwd", Type: "bind", Source: source, Options: []string{"rbind"}})
		must(t, p.Create(t.Context(), req))
		if got, err := p.TerminationLog(id); err != nil || len(got) > 0 {
			t.Errorf("%s: the host reads %q, %v", id, got, err)
		}
		must(t, p.Start(t.Context(), id))
		p.wantExit(t, id, "", 0)
		if got, err := p.TerminationLog(id); err != nil || string(got) != "bye\n" || p.output(t, id, "", false) != "" {
			t.Errorf("%s: last message %q, %v", id, got, err)
		}
	}
	if got, err := os.ReadFile(volume + "/secret"); err != nil || string(got) != "secret" {
		t.Errorf("the volume's file is now %q, %v", got, err)
	}
}

func TestProgramMissing(t *testing.T) {
	p := newPod(t, false)
	err := p.Create(t.Context(), p.request("c1", "no-such-program"))
	if err == nil {
		err = p.Start(t.Context(), "c1")
	}
	if !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "no-such-program") {
		t.Errorf("missing program: %v", err)
	}
}

// TestNothingIsLeft goes round often and looks for what grew.
func TestNothingIsLeft(t *testing.T) {
	p := newPod(t, false)
	round := func() {
		p.run(t, p.request("c1", "sh", "-c", "echo x"))
		p.wantExit(t, "c1", "", 0)
		must(t, p.Remove(t.Context(), "c1", 0))
	}
	round()
	mounts, fds, goroutines := len(mountsBelow(t, p.base)), openFiles(t), runtime.NumGoroutine()
	for range 5 {
		round()
	}
	if got := len(mountsBelow(t, p.base)); got != mounts {
		t.Errorf("mounts: %d, then %d", mounts, got)
	}
	deadline := time.Now().Add(5 * time.Second)
	for openFiles(t) > fds || runtime.NumGoroutine() > goroutines {
		if time.Now().After(deadline) {
			t.Fatalf("open files: %d, then %d; goroutines: %d, then %d", fds, openFiles(t), goroutines, runtime.NumGoroutine())
		}
		runtime.GC()
		runtime.Gosched()
	}
	entries, err := os.ReadDir(filepath.Join(p.base, ".state/tmp"))
	must(t, err)
	if len(entries) > 0 {
		t.Errorf("scratch files are left: %v", entries)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(entries)
}

// TestUserNamespace: the container's root is nobody in the guest, and its files and streams are its own.
func TestUserNamespace(t *testing.T) {
	p := newPod(t, true)
	// Its root walks to its files like any other user.
	for _, dir := range []string{p.base, filepath.Dir(p.base)} {
		must(t, os.Chmod(dir, 0o711))
	}
	req := p.request("c1", "sh", "-c", "cat /proc/self/uid_map; stat -c %u:%g /bin/busybox /; touch /new /dev/shm/x /dev/mqueue/x && test -d /sys/class && echo out >/dev/stdout; hostname; sleep 1000")
	req.SandboxPidns = true
	req.OCI.Mounts = append(req.OCI.Mounts,
		&oci.Mount{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		&oci.Mount{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
	)
	req.OCI.Linux.Namespaces = append(req.OCI.Linux.Namespaces, &oci.LinuxNamespace{Type: "user"})
	req.OCI.Linux.UIDMappings = []*oci.LinuxIDMapping{{HostID: 1000, Size: 65536}}
	req.OCI.Linux.GIDMappings = []*oci.LinuxIDMapping{{HostID: 1000, Size: 65536}}
	p.run(t, req)
	var got string
	for !strings.Contains(got, "pod-name\n") {
		data, err := p.Read(t.Context(), "c1", "", false, 1000)
		must(t, err)
		got += string(data)
	}
	if want := "0 1000 65536 0:0 0:0 out pod-name"; strings.Join(strings.Fields(got), " ") != want {
		t.Errorf("output: %q, want %q", got, want)
	}
	must(t, p.Exec(t.Context(), &agentpb.ExecProcessRequest{ContainerId: "c1", ExecId: "e1",
		Process: &oci.Process{Args: []string{"sh", "-c", "id -u; echo more >/dev/stderr"}, Env: []string{"PATH=/bin"}, Cwd: "/", User: &oci.User{UID: 7, GID: 7}}}))
	if got := p.output(t, "c1", "e1", false); got != "7\n" {
		t.Errorf("user of the exec: %q", got)
	}
	if got := p.output(t, "c1", "e1", true); got != "more\n" {
		t.Errorf("stderr of the exec: %q", got)
	}
	var st unix.Stat_t
	must(t, unix.Stat(filepath.Join(p.base, "c1/rootfs/new"), &st))
	if st.Uid != 1000 {
		t.Errorf("a file of the container's root belongs to %d, want 1000", st.Uid)
	}
}
