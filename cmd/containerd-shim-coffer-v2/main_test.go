package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	sandboxapi "github.com/containerd/containerd/api/runtime/sandbox/v1"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// TestMain lets this test binary be the shim: containerd's arguments begin with a flag that no test has.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && slices.Contains([]string{"-namespace", "-info"}, os.Args[1]) {
		main()
		return
	}
	os.Exit(m.Run())
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// call runs the binary as containerd does.
func call(t *testing.T, bundle string, stdin proto.Message, args ...string) []byte {
	t.Helper()
	self, err := os.Executable()
	must(t, err)
	cmd := exec.CommandContext(t.Context(), self, args...)
	cmd.Dir = bundle
	cmd.Env = append(os.Environ(), "TTRPC_ADDRESS="+filepath.Join(bundle, "no-containerd"))
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if stdin != nil {
		raw, err := proto.Marshal(stdin)
		must(t, err)
		cmd.Stdin = bytes.NewReader(raw)
	}
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: %v: %s", strings.Join(args, " "), err, stderr.String())
	}
	return stdout.Bytes()
}

// TestProcessLife starts a shim, talks to it over its socket, shuts it down and cleans up, as containerd does.
func TestProcessLife(t *testing.T) {
	bundle, sockets := t.TempDir(), t.TempDir()
	// The serving process opens its log for writing, which waits for the reader that containerd is.
	log := filepath.Join(bundle, "log")
	must(t, unix.Mkfifo(log, 0o600))
	reader, err := os.OpenFile(log, os.O_RDWR, 0)
	must(t, err)
	defer reader.Close()
	go func() { _, _ = io.Copy(io.Discard, reader) }()

	args := []string{"-namespace", "test", "-id", "pod", "-address", "/run/containerd.sock"}
	params := &bootapi.BootstrapParams{
		InstanceID: "pod", Namespace: "test", LogLevel: bootapi.LogLevel_LOG_LEVEL_INFO,
		ContainerdGrpcAddress: "/run/containerd.sock", SocketDir: &sockets,
	}
	var result bootapi.BootstrapResult
	must(t, proto.Unmarshal(call(t, bundle, params, append(args, "start")...), &result))
	if result.GetVersion() != 3 || result.GetProtocol() != "ttrpc" {
		t.Errorf("bootstrap result is %v", &result)
	}
	conn, err := net.Dial("unix", strings.TrimPrefix(result.GetAddress(), "unix://"))
	must(t, err)
	gone := make(chan struct{})
	client := ttrpc.NewClient(conn, ttrpc.WithOnClose(func() { close(gone) }))
	defer client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()

	connected, err := taskapi.NewTTRPCTaskClient(client).Connect(ctx, &taskapi.ConnectRequest{ID: "pod"})
	must(t, err)
	if connected.GetShimPid() == 0 || int(connected.GetShimPid()) == os.Getpid() {
		t.Errorf("shim's pid is %d", connected.GetShimPid())
	}
	sandboxes := sandboxapi.NewTTRPCSandboxClient(client)
	_, err = sandboxes.SandboxStatus(ctx, &sandboxapi.SandboxStatusRequest{SandboxID: "pod"})
	if !errdefs.IsNotFound(errgrpc.ToNative(err)) {
		t.Errorf("status before create: %v", err)
	}
	_, err = sandboxes.ShutdownSandbox(ctx, &sandboxapi.ShutdownSandboxRequest{SandboxID: "pod"})
	must(t, err)
	select {
	case <-gone:
	case <-ctx.Done():
		t.Fatal("the shim did not end")
	}

	var deleted taskapi.DeleteResponse
	must(t, proto.Unmarshal(call(t, bundle, nil, append(args, "-bundle", bundle, "delete")...), &deleted))
	if deleted.GetExitStatus() != 137 {
		t.Errorf("delete reports %d, want 137", deleted.GetExitStatus())
	}
	if left, err := os.ReadDir(sockets); err != nil || len(left) > 0 {
		t.Errorf("sockets are left: %v, %v", left, err)
	}
	if _, err := os.Stat(filepath.Join(bundle, "coffer.json")); errors.Is(err, os.ErrNotExist) {
		t.Error("the record went before containerd removed the bundle: a second delete could not clean up")
	}
}

func TestInfo(t *testing.T) {
	var info types.RuntimeInfo
	must(t, proto.Unmarshal(call(t, t.TempDir(), nil, "-info"), &info))
	if info.GetName() != "io.containerd.coffer.v2" || len(info.GetFeatures().GetValue()) == 0 {
		t.Errorf("info is %v", &info)
	}
}
