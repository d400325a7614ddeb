package vmtest_test

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/coffer-project/coffer/shim/vm"
	"github.com/coffer-project/coffer/shim/vm/vmtest"
)

const echoPort, silentPort = 1024, 9

// serveEcho answers until the listener closes.
func serveEcho(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			_, _ = io.Copy(conn, conn)
		}()
	}
}

func TestFakeConforms(t *testing.T) {
	driver := &vmtest.Driver{OnStart: func(i *vmtest.Instance) { go serveEcho(i.Listen(echoPort)) }}
	vmtest.Run(t, vmtest.Harness{
		Driver:     driver,
		Config:     func(t *testing.T) vm.Config { return vm.Config{ID: "fake", StateDir: t.TempDir()} },
		EchoPort:   echoPort,
		SilentPort: silentPort,
		Die: func(_ *testing.T, instance vm.Instance) {
			instance.(*vmtest.Instance).Crash(errors.New("guest kernel panicked"))
		},
	})
}

func TestFakeFaults(t *testing.T) {
	boom := errors.New("boom")
	tap, err := os.CreateTemp(t.TempDir(), "tap")
	if err != nil {
		t.Fatal(err)
	}
	driver := &vmtest.Driver{NewErr: boom}
	if _, err := driver.New(t.Context(), vm.Config{NICs: []vm.NIC{{Tap: tap}}}); !errors.Is(err, boom) {
		t.Errorf("new: %v", err)
	}
	if _, err := tap.Stat(); !errors.Is(err, os.ErrClosed) {
		t.Error("a failed New leaves the tap open")
	}
	driver = &vmtest.Driver{StartErr: boom}
	instance, err := driver.New(t.Context(), vm.Config{ID: "x"})
	if err != nil {
		t.Fatal(err)
	}
	if err := instance.Start(t.Context()); !errors.Is(err, boom) {
		t.Errorf("start: %v", err)
	}
	<-instance.Done()
}

func TestFakePipeDeadline(t *testing.T) {
	driver := &vmtest.Driver{OnStart: func(i *vmtest.Instance) { go serveEcho(i.Listen(echoPort)) }}
	instance, err := driver.New(t.Context(), vm.Config{ID: "x"})
	if err != nil {
		t.Fatal(err)
	}
	if err := instance.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer instance.Stop(t.Context())
	conn, err := instance.Dial(t.Context(), echoPort)
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(10 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read: %v", err)
	}
	if err := conn.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); err != nil {
		t.Errorf("read after the deadline was lifted: %v", err)
	}
}
