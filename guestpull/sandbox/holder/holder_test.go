package holder_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/guestpull/container/reap"
	"github.com/coffer-project/coffer/guestpull/container/spec"
	"github.com/coffer-project/coffer/guestpull/sandbox/holder"
	"github.com/coffer-project/coffer/integration/require"
)

func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == holder.Arg {
		os.Exit(holder.Main())
	}
	if err := reap.Serve(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// TestStart looks at a holder at the first moment at which a container could.
func TestStart(t *testing.T) {
	require.Root(t)
	users := spec.Users{UID: specs.LinuxIDMapping{HostID: 100000, Size: 65536}, GID: specs.LinuxIDMapping{HostID: 100000, Size: 65536}}
	for name, command := range map[string]func() (*exec.Cmd, error){
		"pid namespace":  func() (*exec.Cmd, error) { return holder.Command("/proc/self/exe", true) },
		"stand-in":       func() (*exec.Cmd, error) { return holder.Command("/proc/self/exe", false) },
		"user namespace": func() (*exec.Cmd, error) { return holder.UserCommand("/proc/self/exe", users) },
	} {
		t.Run(name, func(t *testing.T) {
			exits := reap.New()
			defer exits.Close()
			cmd, err := command()
			if err != nil {
				t.Fatal(err)
			}
			held, err := holder.Start(exits, cmd)
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := unix.Kill(held.PID, unix.SIGKILL); err != nil {
					t.Error(err)
				}
				<-held.Exit
			}()
			status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", held.PID))
			if err != nil {
				t.Fatal(err)
			}
			for _, set := range []string{"CapPrm", "CapEff", "CapAmb"} {
				if !strings.Contains(string(status), set+":\t0000000000000000\n") {
					t.Errorf("the holder has capabilities:\n%s", status)
				}
			}
			if entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/root/", held.PID)); err != nil || len(entries) != 0 {
				t.Errorf("its root has %v, %v", entries, err)
			}
			// What the test itself has inherited, it hands down.
			inherited := func(file, link string) bool {
				own, err := os.Readlink("/proc/self/fd/" + file)
				return err == nil && own == link && strings.HasPrefix(link, "pipe:")
			}
			files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", held.PID))
			if err != nil {
				t.Fatal(err)
			}
			for _, file := range files {
				link, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", held.PID, file.Name()))
				if err != nil || link != "/dev/null" && !strings.HasPrefix(link, "anon_inode:") && !inherited(file.Name(), link) {
					t.Errorf("it has file %s, %q, %v", file.Name(), link, err)
				}
			}
		})
	}
}

// noting starts processes and keeps the last one's number.
type noting struct {
	*reap.Table
	pid int
}

func (n *noting) Start(cmd *exec.Cmd) (pid int, exit <-chan int, err error) {
	pid, exit, err = n.Table.Start(cmd)
	n.pid = pid
	return pid, exit, err
}

// TestStartFails: of a holder that is killed, or gives up, before it is ready, nothing is left.
func TestStartFails(t *testing.T) {
	require.Root(t)
	for name, script := range map[string]string{"killed": "kill -9 $$", "gives up": "exit 1", "closes the pipe": "exec 4>&-; exec sleep 1000"} {
		t.Run(name, func(t *testing.T) {
			exits := reap.New()
			defer exits.Close()
			cmd, err := holder.Command("/bin/sh", false)
			if err != nil {
				t.Fatal(err)
			}
			cmd.Args = []string{"sh", "-c", script}
			children := &noting{Table: exits}
			if _, err := holder.Start(children, cmd); !errors.Is(err, errdefs.ErrUnavailable) {
				t.Errorf("got %v", err)
			}
			if err := unix.Kill(children.pid, 0); !errors.Is(err, unix.ESRCH) {
				t.Errorf("process %d is left: %v", children.pid, err)
			}
		})
	}
}
