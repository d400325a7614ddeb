package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/shim/vm"
)

// orphanEnv makes the test binary start a VM and die: a killed shim.
const orphanEnv = "COFFER_TEST_ORPHAN_CONFIG"

// orphanMain boots what the environment describes, prints QEMU's pid and kills itself on the next line of input.
func orphanMain() {
	var job struct {
		Options Options
		Config  vm.Config
	}
	if err := json.Unmarshal([]byte(os.Getenv(orphanEnv)), &job); err != nil {
		panic(err)
	}
	driver, err := NewDriver(job.Options)
	if err != nil {
		panic(err)
	}
	instance, err := driver.New(context.Background(), job.Config)
	if err != nil {
		panic(err)
	}
	if err := instance.Start(context.Background()); err != nil {
		panic(err)
	}
	fmt.Println(instance.PID())
	_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
	_ = unix.Kill(os.Getpid(), unix.SIGKILL)
}

func TestShimKilled(t *testing.T) {
	g := needGuest(t)
	config := g.config(t)
	raw, err := json.Marshal(map[string]any{"Options": testOptions(t), "Config": config})
	if err != nil {
		t.Fatal(err)
	}
	shim := exec.Command(os.Args[0])
	shim.Env = append(os.Environ(), orphanEnv+"="+string(raw))
	shim.Stderr = os.Stderr
	in, err := shim.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := shim.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := shim.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)
	if _, err := os.Stat(filepath.Join(config.StateDir, stateFile)); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(in)
	if err := shim.Wait(); err == nil {
		t.Fatal("the shim was not killed")
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := waitPidfd(ctx, pidfd); err != nil {
		t.Fatalf("QEMU outlives the shim: %v", err)
	}
	if err := newDriver(t, nil).Cleanup(t.Context(), config.StateDir); err != nil {
		t.Error(err)
	}
	if left, _ := os.ReadDir(config.StateDir); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestCleanupSparesOthers gives Cleanup a record whose pid belongs to another process by now.
func TestCleanupSparesOthers(t *testing.T) {
	other := exec.Command("sleep", "60")
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Process.Kill(); _ = other.Wait() }()
	good, err := recordOf(other.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*record){
		"start time": func(r *record) { r.StartTime-- },
		"boot":       func(r *record) { r.BootID = "another" },
		"pid 1":      func(r *record) { r.PID = 1 },
		"gone":       func(r *record) { r.PID = 1 << 22 },
	} {
		t.Run(name, func(t *testing.T) {
			dir, r := t.TempDir(), good
			change(&r)
			if err := r.write(dir); err != nil {
				t.Fatal(err)
			}
			if err := cleanup(t.Context(), dir); err != nil {
				t.Fatal(err)
			}
			if _, err := recordOf(other.Process.Pid); err != nil {
				t.Fatal("another process was killed")
			}
			if left, _ := os.ReadDir(dir); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
	t.Run("no record", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, stateFile), []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := cleanup(t.Context(), dir); err != nil {
			t.Error(err)
		}
	})
	t.Run("right one", func(t *testing.T) {
		dir := t.TempDir()
		if err := good.write(dir); err != nil {
			t.Fatal(err)
		}
		reaped := make(chan error, 1)
		go func() { reaped <- other.Wait() }()
		if err := cleanup(t.Context(), dir); err != nil {
			t.Fatal(err)
		}
		if err := <-reaped; err == nil {
			t.Error("the process was not killed")
		}
	})
}
