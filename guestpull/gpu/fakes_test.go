package gpu

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coffer-project/coffer/guestpull/container/reap"
)

// TestMain is also each of NVIDIA's programs, by the name that it is called by.
func TestMain(m *testing.M) {
	name := filepath.Base(os.Args[0])
	fake, is := map[string]func(dir string, args []string) int{
		"nvidia-persistenced": fakePersistenced, "nv-fabricmanager": fakeFabricManager, "nvlsm": fakeDaemon, "nv-hostengine": fakeDaemon,
		"dcgm-exporter": fakeDaemon, "nvidia-smi": fakeSMI, "nvidia-ctk": fakeToolkit,
	}[name]
	if is {
		dir := filepath.Dir(filepath.Dir(os.Args[0])) // the extension's
		calls, err := os.OpenFile(filepath.Join(dir, "calls"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err == nil {
			fmt.Fprintln(calls, name, strings.Join(os.Args[1:], " "))
		}
		os.Exit(fake(dir, os.Args[1:]))
	}
	ctx, stop := context.WithCancel(context.Background())
	if err := reap.Serve(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	stop()
	os.Exit(code)
}

// stay is the life of a daemon: until it is killed, or the test is long over.
func stay() int {
	time.Sleep(30 * time.Second)
	return 0
}

func fakeDaemon(string, []string) int { return stay() }

func fakePersistenced(dir string, _ []string) int {
	if exists(filepath.Join(dir, "persistenced-fails")) {
		fmt.Fprintln(os.Stderr, "failed to open device")
		return 1
	}
	fmt.Println("nvidia-persistenced: Local RPC services initialized")
	return stay()
}

func fakeFabricManager(string, []string) int {
	fmt.Println("FM starting NvLink Inband Thread")
	return stay()
}

func fakeSMI(_ string, args []string) int {
	if args[1] == "99999" {
		fmt.Print("Checking\nProvided power limit 99999.00 W is not a valid power limit\n\n")
		return 3
	}
	return 0
}

// fakeToolkit writes what the real one does for one GPU, in short. The null device stands in for it, whose number it takes.
func fakeToolkit(dir string, args []string) int {
	hook := filepath.Join(dir, "bin/nvidia-cdi-hook")
	if exists(filepath.Join(dir, "cdi-evil")) {
		hook = "/bin/sh"
	}
	spec := fmt.Sprintf(`{"cdiVersion": "0.5.0", "kind": "nvidia.com/gpu",
  "devices": [{"name": "0", "containerEdits": {"deviceNodes": [{"path": "/dev/nvidia0", "type": "c", "major": 195, "minor": 0}]}}],
  "containerEdits": {"env": ["NVIDIA_VISIBLE_DEVICES=void"],
    "hooks": [{"hookName": "createContainer", "path": %q, "args": ["nvidia-cdi-hook", "update-ldcache"], "env": ["NVIDIA_CTK_DEBUG=false"]}],
    "mounts": [{"hostPath": %q, "containerPath": "/usr/lib/x86_64-linux-gnu/libcuda.so.1", "options": ["ro", "nosuid", "nodev", "rbind", "rprivate"]}]}}
`, hook, filepath.Join(dir, "usr/lib/x86_64-linux-gnu/libcuda.so.1"))
	for _, arg := range args {
		if file, is := strings.CutPrefix(arg, "--output="); is {
			if err := os.WriteFile(file, []byte(spec), 0o600); err != nil {
				fmt.Fprintln(os.Stderr, err)
				return 1
			}
		}
	}
	return 0
}
