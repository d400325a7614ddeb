package guestboot

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/coffer-project/coffer/integration/guestvm"
	"github.com/coffer-project/coffer/proto/mux"
	"github.com/coffer-project/coffer/shim/transport"
)

// What the guest's log says of its hosts.
const (
	came  = "host connected to the control channel"
	ready = "waiting for a host on the control channel"
)

// leave closes an orderly host's connection and waits until the guest is ready for another, so that the next host is not
// taken for this one.
func leave(t *testing.T, v *guestvm.VM, conn net.Conn, host *transport.Serial) {
	t.Helper()
	// The console lags behind the channel: this line comes after all that the guest said of hosts before.
	token := fmt.Sprintf("token-%d", time.Now().UnixNano())
	ask(t, host, "say "+token)
	v.WaitLine(t, token)
	gone := v.Count(ready) + 1
	conn.Close()
	v.WaitCount(t, ready, gone)
}

// TestChannel gives one guest a row of hosts, as a restarted shim does, each worse than the last.
func TestChannel(t *testing.T) {
	v := guestvm.Start(t, image, guestvm.Config{Params: []string{"agent.log=debug"}})

	t.Run("the first host, before the guest is up", func(t *testing.T) {
		conn, host := v.Connect(t)
		echo(t, host, 1<<20)
		roundTrips(t, host)
		leave(t, v, conn, host)
	})
	t.Run("streams at the same time", func(t *testing.T) {
		conn, host := v.Connect(t)
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() { echo(t, host, 128<<10) })
		}
		all.Wait()
		leave(t, v, conn, host)
	})
	t.Run("nobody listens", func(t *testing.T) {
		conn, host := v.Connect(t)
		// The dialer goes on trying until its time is over.
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		if stream, err := host.Dial(ctx, 9); err == nil {
			stream.Close()
			t.Error("port 9 took a stream")
		}
		echo(t, host, 1000)
		leave(t, v, conn, host)
	})
	t.Run("a host that vanishes in the midst of a frame, with an open stream", func(t *testing.T) {
		conn, host := v.Connect(t)
		stream, err := host.Dial(timeout(t), 1)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Write(make([]byte, 64<<10)); err != nil {
			t.Fatal(err)
		}
		// The header of a frame of 4096 bytes, which do not come.
		frame := append([]byte{0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 16, 0}, make([]byte, 100)...)
		gone := v.Count(ready) + 1 // nothing is on its way: the host before left in order
		if _, err := conn.Write(frame); err != nil {
			t.Fatal(err)
		}
		conn.Close()
		v.WaitCount(t, ready, gone)
	})
	t.Run("a host that says what is not the protocol", func(t *testing.T) {
		readies, comes := v.Count(ready), v.Count(came)
		raw := v.ConnectRaw(t)
		if _, err := raw.Write(bytes.Repeat([]byte("garbage "), 100)); err != nil {
			t.Fatal(err)
		}
		// It is told so, by yamux's frame of a protocol error.
		want := []byte{0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1}
		got := make([]byte, len(want))
		if err := raw.SetReadDeadline(time.Now().Add(guestvm.Timeout)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(raw, got); err != nil || !bytes.Equal(got, want) {
			t.Errorf("got % x, %v", got, err)
		}
		v.WaitCount(t, came, comes+2)
		raw.Close()
		v.WaitCount(t, ready, readies+1)
	})
	t.Run("a host, and one at its heels", func(t *testing.T) {
		conn, host := v.Connect(t)
		echo(t, host, 1<<20)
		if _, err := host.Dial(timeout(t), 1); err != nil {
			t.Fatal(err)
		}
		conn.Close()
		tryUntilServed(t, v)
	})
}

func timeout(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), guestvm.Timeout)
	t.Cleanup(cancel)
	return ctx
}

// tryUntilServed is a host that follows another so closely that the guest may take its first bytes for the other's. It
// is told so, and comes again.
func tryUntilServed(t *testing.T, v *guestvm.VM) {
	t.Helper()
	for whole := timeout(t); whole.Err() == nil; {
		conn, host := v.Connect(t)
		ctx, cancel := context.WithTimeout(whole, guestvm.Timeout/4)
		err := tryEcho(ctx, host, 1<<20)
		cancel()
		conn.Close()
		if err == nil {
			return
		}
		t.Logf("dropped: %v", err)
	}
	t.Error("no session came about")
}

// echo sends size random bytes to the guest and back.
func echo(t *testing.T, host *transport.Serial, size int) {
	t.Helper()
	if err := tryEcho(timeout(t), host, size); err != nil {
		t.Errorf("echo of %d bytes: %v", size, err)
	}
}

func tryEcho(ctx context.Context, host *transport.Serial, size int) error {
	conn, err := host.Dial(ctx, 1)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	want := make([]byte, size)
	_, _ = rand.Read(want)
	go func() { _, _ = conn.Write(want) }()
	got := make([]byte, size)
	if _, err := io.ReadFull(conn, got); err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return errors.New("other bytes came back")
	}
	return nil
}

// roundTrips logs how long a byte takes there and back.
func roundTrips(t *testing.T, host *transport.Serial) {
	t.Helper()
	conn, err := host.Dial(timeout(t), 1)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	const count = 200
	begin := time.Now()
	b := []byte{1}
	for range count {
		if _, err := conn.Write(b); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(conn, b); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("round trip over %s: %v", mux.PortName, time.Since(begin)/count)
}
