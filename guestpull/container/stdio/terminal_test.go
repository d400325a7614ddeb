package stdio

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// terminal returns the streams of a terminal whose output is gathered for as long as it takes, and its other side.
func terminal(t *testing.T) (*Set, *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := master.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var number int
	var ioctl error
	err = conn.Control(func(fd uintptr) {
		if ioctl = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0); ioctl == nil {
			number, ioctl = unix.IoctlGetInt(int(fd), unix.TIOCGPTN)
		}
	})
	if err != nil || ioctl != nil {
		t.Fatal(err, ioctl)
	}
	side, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	set := Console(master)
	set.stdout.patience = time.Hour
	t.Cleanup(func() { set.Close(); side.Close() })
	return set, side
}

// TestTerminalGathers: much output of a terminal, which hands out little at a time, comes in few chunks.
func TestTerminalGathers(t *testing.T) {
	set, side := terminal(t)
	sent := pattern(terminalChunk + 3*firstChunk)
	written := make(chan error, 1)
	go func() {
		_, err := side.Write(sent)
		side.Close()
		written <- err
	}()
	var chunks [][]byte
	for {
		chunk, err := set.Stdout(t.Context(), 1<<30)
		if err != nil {
			t.Fatal(err)
		}
		if len(chunk) == 0 {
			break
		}
		chunks = append(chunks, chunk)
	}
	if err := <-written; err != nil {
		t.Fatal(err)
	}
	if got := bytes.Join(chunks, nil); !bytes.Equal(got, sent) {
		t.Errorf("%d bytes arrived of %d, or others", len(got), len(sent))
	}
	// Its end cuts the second one short.
	if len(chunks) != 2 || len(chunks[0]) != terminalChunk {
		t.Errorf("%d chunks, the first has %d bytes", len(chunks), len(chunks[0]))
	}
}

// TestTerminalAnswers: little output is not held back.
func TestTerminalAnswers(t *testing.T) {
	set, side := terminal(t)
	if _, err := side.WriteString("login: "); err != nil {
		t.Fatal(err)
	}
	if got, err := set.Stdout(t.Context(), 1<<30); err != nil || string(got) != "login: " {
		t.Errorf("got %q, %v", got, err)
	}
}

// TestTerminalGivenUp: a call that ends while it gathers has what it gathered, and a call that asked for less gets that.
func TestTerminalGivenUp(t *testing.T) {
	set, side := terminal(t)
	sent := pattern(firstChunk)
	if _, err := side.Write(sent[:firstChunk-100]); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan []byte, 1)
	go func() {
		chunk, _ := set.Stdout(ctx, 1<<30)
		result <- chunk
	}()
	// The first read has emptied the terminal when there is room again.
	if _, err := side.Write(sent[firstChunk-100:]); err != nil {
		t.Fatal(err)
	}
	cancel()
	got := <-result
	for len(got) < len(sent) {
		chunk, err := set.Stdout(t.Context(), 1000)
		if err != nil || len(chunk) == 0 || len(chunk) > 1000 {
			t.Fatalf("after %d bytes: %d, %v", len(got), len(chunk), err)
		}
		got = append(got, chunk...)
	}
	if !bytes.Equal(got, sent) {
		t.Errorf("got %q", got)
	}
}
