package forward

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/shim/netns"
)

// victimEnv names the namespace in which this test program is to forward ports until it is killed.
const victimEnv = "COFFER_TEST_FORWARD_NETNS"

func TestMain(m *testing.M) {
	if path := os.Getenv(victimEnv); path != "" {
		victim(path)
	}
	os.Exit(m.Run())
}

func victim(path string) {
	never := func(ctx context.Context, _ uint32) (net.Conn, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if _, err := Start(context.Background(), path, never); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("forwarding")
	select {}
}

// TestKilled kills a process that forwards, with a connection under way. Its namespace lives on and must be as before.
func TestKilled(t *testing.T) {
	pod := newPod(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Env = append(os.Environ(), victimEnv+"="+pod)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(stdout).ReadString('\n'); line != "forwarding\n" {
		t.Fatalf("the process says %q, %v", line, err)
	}
	conn := mustDial(t, pod, "tcp4", "127.0.0.1:80")
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the connection under way: %v", err)
	}
	for _, address := range []string{"127.0.0.1:80", "[::1]:80"} {
		if _, err := dial(pod, "tcp", address); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("%s: %v", address, err)
		}
	}
	start(t, pod, &guest{servers: map[uint16]func(*net.TCPConn){80: greet}})
	if got, err := read(pod, "tcp4", "127.0.0.1:80"); got != "hello" || err != nil {
		t.Errorf("its successor: %q, %v", got, err)
	}
}

// TestRefusedByKernel starts without the capabilities. What was made before the kernel refused must be gone.
func TestRefusedByKernel(t *testing.T) {
	pod := newPod(t)
	before := openFiles(t)
	result := make(chan error, 1)
	netns.Thread(func() {
		// Only this thread's, which ends with the function.
		var none [2]unix.CapUserData
		if err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0]); err != nil {
			result <- err
			return
		}
		_, err := Start(t.Context(), pod, nil)
		result <- err
	})
	if err := <-result; !errdefs.IsFailedPrecondition(err) || !errors.Is(err, unix.EPERM) {
		t.Errorf("got %v", err)
	} else {
		t.Log(err)
	}
	if after := openFiles(t); after > before {
		t.Errorf("%d files open, %d before", after, before)
	}
}
