package guestboot

import (
	"bytes"
	"context"
	"crypto/rand"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coffer-project/coffer/proto/mux"
	"github.com/coffer-project/coffer/shim/transport"
)

// left is what the guest's log says when it has noticed that a host is gone.
const left = "host left the control channel"

// TestChannel gives one guest a row of hosts, as a restarted shim does, each worse than the last.
func TestChannel(t *testing.T) {
	v := start(t, config{params: []string{"agent.log=debug"}})
	// An orderly host is one whose leaving the guest has noticed before the next one comes.
	gone := 0
	leave := func(t *testing.T, conn net.Conn) {
		t.Helper()
		conn.Close()
		gone = count(v.lines(), left) + 1
		v.waitCount(t, left, gone)
	}

	t.Run("the first host, before the guest is up", func(t *testing.T) {
		conn, host := v.connect(t)
		echo(t, host, 1<<20)
		roundTrips(t, host)
		leave(t, conn)
	})
	t.Run("streams at the same time", func(t *testing.T) {
		conn, host := v.connect(t)
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() { echo(t, host, 128<<10) })
		}
		all.Wait()
		leave(t, conn)
	})
	t.Run("nobody listens", func(t *testing.T) {
		conn, host := v.connect(t)
		// The dialer goes on trying until its time is over.
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		if stream, err := host.Dial(ctx, 9); err == nil {
			stream.Close()
			t.Error("port 9 took a stream")
		}
		echo(t, host, 1000)
		leave(t, conn)
	})
	t.Run("a host that vanishes with an open stream", func(t *testing.T) {
		conn, host := v.connect(t)
		stream, err := host.Dial(timeout(t), 1)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Write(make([]byte, 64<<10)); err != nil {
			t.Fatal(err)
		}
		leave(t, conn)
	})
	t.Run("the next host, and one at its heels", func(t *testing.T) {
		conn, host := v.connect(t)
		echo(t, host, 1<<20)
		if _, err := host.Dial(timeout(t), 1); err != nil {
			t.Fatal(err)
		}
		conn.Close()
		tryUntilServed(t, v, leave)
	})
	t.Run("a host that says what is not the protocol is told so", func(t *testing.T) {
		raw := v.connectRaw(t)
		if _, err := raw.Write(bytes.Repeat([]byte("garbage "), 100)); err != nil {
			t.Fatal(err)
		}
		// yamux's frame of a protocol error.
		want := []byte{0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1}
		got := make([]byte, len(want))
		if err := raw.SetReadDeadline(time.Now().Add(bootTimeout)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(raw, got); err != nil || !bytes.Equal(got, want) {
			t.Errorf("got % x, %v", got, err)
		}
		leave(t, raw)
	})
	t.Run("a host in the midst of a frame", func(t *testing.T) {
		raw := v.connectRaw(t)
		// The header of a frame of 4096 bytes, which do not come.
		if _, err := raw.Write([]byte{0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 16, 0}); err != nil {
			t.Fatal(err)
		}
		leave(t, raw)
	})
	t.Run("the last host", func(t *testing.T) {
		_, host := v.connect(t)
		echo(t, host, 1<<20)
	})
}

func count(lines []string, text string) (n int) {
	for _, line := range lines {
		if strings.Contains(line, text) {
			n++
		}
	}
	return n
}

func timeout(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), bootTimeout)
	t.Cleanup(cancel)
	return ctx
}

// tryUntilServed is a host that follows another so closely that the guest may take its first bytes for the other's. It
// is told so, and comes again.
func tryUntilServed(t *testing.T, v *vm, leave func(*testing.T, net.Conn)) {
	t.Helper()
	for ctx := timeout(t); ctx.Err() == nil; {
		conn, host := v.connect(t)
		stream, err := host.Dial(ctx, 1)
		if err != nil {
			t.Logf("dropped: %v", err)
			conn.Close()
			continue
		}
		stream.Close()
		echo(t, host, 1000)
		leave(t, conn)
		return
	}
	t.Error("no session came about")
}

// echo sends size random bytes to the guest and back.
func echo(t *testing.T, host *transport.Serial, size int) {
	t.Helper()
	conn, err := host.Dial(timeout(t), 1)
	if err != nil {
		t.Errorf("dial: %v", err)
		return
	}
	defer conn.Close()
	want := make([]byte, size)
	_, _ = rand.Read(want)
	go func() { _, _ = conn.Write(want) }()
	got := make([]byte, size)
	if err := conn.SetReadDeadline(time.Now().Add(bootTimeout)); err != nil {
		t.Error(err)
		return
	}
	if _, err := io.ReadFull(conn, got); err != nil || !bytes.Equal(got, want) {
		t.Errorf("echo of %d bytes: %v", size, err)
	}
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
