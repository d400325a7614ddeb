package stdio

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

func pipes(t *testing.T) (*Set, *Child) {
	t.Helper()
	set, child, err := Pipes(0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { set.Close(); child.Close() })
	return set, child
}

func TestOutputSurvivesExit(t *testing.T) {
	set, child := pipes(t)
	if _, err := child.Stdout.WriteString("last words"); err != nil {
		t.Fatal(err)
	}
	child.Close()
	set.Exited()
	if set.Drained() {
		t.Error("drained before anything was read")
	}
	got, err := set.Stdout(t.Context(), 4)
	if err != nil || string(got) != "last" {
		t.Fatalf("first chunk: %q, %v", got, err)
	}
	if got, err = set.Stdout(t.Context(), 100); err != nil || string(got) != " words" {
		t.Fatalf("second chunk: %q, %v", got, err)
	}
	for range 2 {
		if got, err = set.Stdout(t.Context(), 100); err != nil || len(got) != 0 {
			t.Fatalf("end: %q, %v", got, err)
		}
	}
	if got, err = set.Stderr(t.Context(), 100); err != nil || len(got) != 0 {
		t.Fatalf("error output: %q, %v", got, err)
	}
	if !set.Drained() {
		t.Error("not drained after both ends")
	}
}

// TestPipeHeldOpen: a child left behind holds the pipe; the backlog is delivered, however late it is read, and then the stream ends.
func TestPipeHeldOpen(t *testing.T) {
	set, child := pipes(t)
	waiting := make(chan []byte, 1)
	go func() {
		got, _ := set.Stderr(context.Background(), 10)
		waiting <- got
	}()
	if _, err := child.Stdout.Write(bytes.Repeat([]byte("x"), 1000)); err != nil {
		t.Fatal(err)
	}
	set.Exited()
	if got := <-waiting; len(got) != 0 { // a read that was waiting when the process exited
		t.Errorf("error output: %q", got)
	}
	// By now the time for the first wait is over; what is in the pipe is not lost.
	total := 0
	for {
		got, err := set.Stdout(t.Context(), 300)
		if err != nil {
			t.Fatal(err)
		}
		if len(got) == 0 {
			break
		}
		total += len(got)
	}
	if total != 1000 {
		t.Errorf("read %d of 1000 bytes", total)
	}
}

func TestReadGivenUp(t *testing.T) {
	set, child := pipes(t)
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() {
		_, err := set.Stdout(ctx, 10)
		result <- err
	}()
	cancel()
	if err := <-result; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	// The stream is as good as before.
	if _, err := child.Stdout.WriteString("x"); err != nil {
		t.Fatal(err)
	}
	if got, err := set.Stdout(t.Context(), 10); err != nil || string(got) != "x" {
		t.Errorf("next read: %q, %v", got, err)
	}
}

func TestWriteGivenUp(t *testing.T) {
	set, child := pipes(t)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	// More than a pipe holds, and nobody reads.
	n, err := set.Write(ctx, make([]byte, 1<<20))
	if !errors.Is(err, context.DeadlineExceeded) || n == 0 {
		t.Errorf("wrote %d: %v", n, err)
	}
	if err := child.Stdin.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := set.Write(t.Context(), []byte("x")); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("write to nobody: %v", err)
	}
}

func TestCloseEndsWaits(t *testing.T) {
	set, _ := pipes(t)
	result := make(chan error, 1)
	go func() {
		_, err := set.Stdout(context.Background(), 10)
		result <- err
	}()
	set.Close()
	if err := <-result; err != nil {
		t.Errorf("read: %v", err)
	}
	if _, err := set.Write(t.Context(), []byte("x")); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("write: %v", err)
	}
	if err := set.Resize(1, 1); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("resize without terminal: %v", err)
	}
}

func TestPipeSize(t *testing.T) {
	set, child, err := Pipes(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	defer set.Close()
	defer child.Close()
	if n, err := child.Stdout.Write(make([]byte, 1<<20)); err != nil || n != 1<<20 { // would block
		t.Errorf("wrote %d: %v", n, err)
	}
}

func TestOneChunkIsBounded(t *testing.T) {
	set, child := pipes(t)
	if _, err := child.Stdout.WriteString("x"); err != nil {
		t.Fatal(err)
	}
	got, err := set.Stdout(t.Context(), 1<<30)
	if err != nil || cap(got) > maxChunk {
		t.Errorf("buffer of %d bytes, %v", cap(got), err)
	}
}

// TestWholePipe: one read takes all that a pipe holds, up to its own bound.
func TestWholePipe(t *testing.T) {
	set, child, err := Pipes(2 * maxChunk)
	if err != nil {
		t.Fatal(err)
	}
	defer set.Close()
	defer child.Close()
	sent := pattern(maxChunk + maxChunk/2)
	if _, err := child.Stdout.Write(sent); err != nil {
		t.Fatal(err)
	}
	first, err := set.Stdout(t.Context(), 1<<30)
	if err != nil || !bytes.Equal(first, sent[:maxChunk]) || cap(first) > 2*maxChunk {
		t.Fatalf("first chunk: %d bytes in %d, %v", len(first), cap(first), err)
	}
	if rest, err := set.Stdout(t.Context(), 1<<30); err != nil || !bytes.Equal(rest, sent[maxChunk:]) {
		t.Fatalf("second chunk: %d bytes, %v", len(rest), err)
	}
}

// pattern is output in which a byte that is lost or moved shows. A terminal leaves it as it is.
func pattern(size int) []byte {
	out := make([]byte, size)
	for i := range out {
		out[i] = 'a' + byte(i%23)
	}
	return out
}
