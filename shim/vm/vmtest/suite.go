package vmtest

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/shim/vm"
)

// patience bounds every wait of the suite; an emulated guest on a busy machine is slow.
const patience = 90 * time.Second

// Harness is what the suite needs of an implementation.
type Harness struct {
	Driver vm.Driver
	// Config makes a configuration with a fresh, empty state directory, whose guest listens on EchoPort and sends back
	// what it gets, and does not listen on SilentPort.
	Config               func(t *testing.T) vm.Config
	EchoPort, SilentPort uint32
	// Die makes a running guest end by itself.
	Die func(t *testing.T, instance vm.Instance)
}

// Run checks the contract of vm.Driver and vm.Instance.
func Run(t *testing.T, h Harness) {
	for name, test := range map[string]func(*testing.T, Harness){
		"life":       testLife,
		"order":      testOrder,
		"death":      testDeath,
		"cleanup":    testCleanup,
		"stop early": testStopEarly,
		"disks":      testDisks,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, h)
		})
	}
}

func create(t *testing.T, h Harness) (vm.Instance, vm.Config) {
	t.Helper()
	config := h.Config(t)
	instance, err := h.Driver.New(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience) // the test's own has ended
		defer cancel()
		if err := instance.Stop(ctx); err != nil {
			t.Error(err)
		}
	})
	return instance, config
}

func start(t *testing.T, h Harness) (vm.Instance, vm.Config) {
	t.Helper()
	instance, config := create(t, h)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := instance.Start(ctx); err != nil {
		t.Fatal(err)
	}
	return instance, config
}

func dial(t *testing.T, instance vm.Instance, port uint32) net.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	conn, err := instance.Dial(ctx, port)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func echo(conn net.Conn, size int) error {
	sent, got := make([]byte, size), make([]byte, size)
	rand.Read(sent)
	written := make(chan error, 1)
	go func() { _, err := conn.Write(sent); written <- err }()
	if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := io.ReadFull(conn, got); err != nil {
		return err
	}
	if !bytes.Equal(sent, got) {
		return errors.New("echo differs")
	}
	return <-written
}

func ended(t *testing.T, instance vm.Instance) vm.Exit {
	t.Helper()
	select {
	case <-instance.Done():
	case <-time.After(patience):
		t.Fatal("Done is not closed")
	}
	exit := instance.Exit()
	if exit.At.IsZero() {
		t.Error("exit has no time")
	}
	return exit
}

func emptyDir(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		t.Errorf("left behind in the state directory: %s", entry.Name())
	}
}

// unavailable checks that a dial fails at once, although it could wait.
func unavailable(t *testing.T, instance vm.Instance, port uint32) error {
	t.Helper()
	_, err := instance.Dial(t.Context(), port)
	if !errdefs.IsUnavailable(err) {
		t.Errorf("dial of an ended vm: %v", err)
	}
	return err
}

func testLife(t *testing.T, h Harness) {
	instance, config := start(t, h)
	if instance.PID() <= 0 {
		t.Errorf("pid %d", instance.PID())
	}
	var wg sync.WaitGroup
	for range 5 {
		conn := dial(t, instance, h.EchoPort)
		wg.Go(func() {
			if err := echo(conn, 1<<20); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	silent, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := instance.Dial(silent, h.SilentPort); !errors.Is(err, context.DeadlineExceeded) || errdefs.IsUnavailable(err) {
		t.Errorf("dial of a port that nobody listens on: %v", err)
	}
	open := dial(t, instance, h.EchoPort)
	select {
	case <-instance.Done():
		t.Fatalf("ended early: %+v", instance.Exit())
	default:
	}
	for range 2 {
		wg.Go(func() {
			if err := instance.Stop(t.Context()); err != nil {
				t.Errorf("stop: %v", err)
			}
		})
	}
	wg.Wait()
	if exit := ended(t, instance); !exit.Requested || exit.Err != nil {
		t.Errorf("exit %+v", exit)
	}
	if _, err := open.Read(make([]byte, 1)); err == nil {
		t.Error("a connection outlives the vm")
	}
	_ = unavailable(t, instance, h.EchoPort)
	emptyDir(t, config.StateDir)
	if err := h.Driver.Cleanup(t.Context(), config.StateDir); err != nil {
		t.Errorf("cleanup of a stopped vm: %v", err)
	}
}

func testOrder(t *testing.T, h Harness) {
	instance, _ := create(t, h)
	if _, err := instance.Dial(t.Context(), h.EchoPort); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("dial before start: %v", err)
	}
	if instance.PID() != 0 {
		t.Errorf("pid %d before start", instance.PID())
	}
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if err := instance.Start(over); !errors.Is(err, context.Canceled) {
		t.Errorf("start with a context that has ended: %v", err)
	}
	again, _ := start(t, h)
	if err := again.Start(t.Context()); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("second start: %v", err)
	}
}

func testDeath(t *testing.T, h Harness) {
	instance, config := start(t, h)
	conn := dial(t, instance, h.EchoPort)
	waiting := make(chan error, 1)
	go func() { _, err := instance.Dial(t.Context(), h.SilentPort); waiting <- err }()
	h.Die(t, instance)
	exit := ended(t, instance)
	if exit.Requested || exit.Err == nil {
		t.Fatalf("exit %+v", exit)
	}
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		t.Error("a connection outlives the vm")
	}
	if err := <-waiting; !errdefs.IsUnavailable(err) {
		t.Errorf("a dial that waited: %v", err)
	}
	if err := unavailable(t, instance, h.EchoPort); !strings.Contains(err.Error(), exit.Err.Error()) {
		t.Errorf("%q does not say why the vm ended: %q", err, exit.Err)
	}
	if err := instance.Stop(t.Context()); err != nil {
		t.Errorf("stop after death: %v", err)
	}
	if exit := instance.Exit(); exit.Requested {
		t.Error("stop after death changed the exit")
	}
	emptyDir(t, config.StateDir)
}

func testCleanup(t *testing.T, h Harness) {
	instance, config := start(t, h)
	for range 2 {
		if err := h.Driver.Cleanup(t.Context(), config.StateDir); err != nil {
			t.Fatal(err)
		}
	}
	if exit := ended(t, instance); exit.Requested || exit.Err == nil {
		t.Errorf("exit %+v", exit)
	}
	emptyDir(t, config.StateDir)
	if err := h.Driver.Cleanup(t.Context(), config.StateDir+"/gone"); err != nil {
		t.Errorf("cleanup of a directory that is gone: %v", err)
	}
}

func testStopEarly(t *testing.T, h Harness) {
	instance, config := create(t, h)
	if err := instance.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if exit := ended(t, instance); !exit.Requested || exit.Err != nil {
		t.Errorf("exit %+v", exit)
	}
	if err := instance.Start(t.Context()); err == nil {
		t.Error("a stopped vm started")
	}
	// While it boots: nothing answers yet.
	booting, _ := start(t, h)
	if err := booting.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if exit := ended(t, booting); !exit.Requested || exit.Err != nil {
		t.Errorf("exit %+v", exit)
	}
	emptyDir(t, config.StateDir)
}
