package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	agentpb "github.com/coffer-project/coffer/proto/agent"
	"github.com/coffer-project/coffer/shim/agent/agenttest"
)

func started(t *testing.T) (*agenttest.Guest, *Client, *agenttest.Process) {
	t.Helper()
	guest := agenttest.New(t)
	client := connect(t, guest, Options{})
	createAndStart(t, client, "c")
	process, err := guest.Process("c", "")
	if err != nil {
		t.Fatal(err)
	}
	return guest, client, process
}

func TestCopyOutput(t *testing.T) {
	_, client, fake := started(t)
	large := strings.Repeat("0123456789abcdef", 3*outputChunk/16) + "end"
	fake.Print(large)
	fake.PrintError("oops")
	fake.Exit(3)

	p := client.Process("c", "")
	var stdout, stderr bytes.Buffer
	if err := p.CopyStdout(testContext(t), &stdout); err != nil {
		t.Error(err)
	}
	if err := p.CopyStderr(testContext(t), &stderr); err != nil {
		t.Error(err)
	}
	if stdout.String() != large || stderr.String() != "oops" {
		t.Errorf("got %d bytes of output and %q", stdout.Len(), stderr.String())
	}
	if status, err := p.Wait(testContext(t)); status != 3 || err != nil {
		t.Errorf("exit status %d, %v", status, err)
	}
}

// TestCopyOutputEnds: how the end of a stream looks depends on the agent and its age.
func TestCopyOutputEnds(t *testing.T) {
	for name, test := range map[string]struct {
		answer error
		want   error
	}{
		"process forgotten":  {errdefs.ErrNotFound, nil},
		"container unknown":  {errdefs.ErrInvalidArgument, nil},
		"older agent":        {errors.New("read meet eof"), nil},
		"terminal closed":    {errors.New("eof"), nil},
		"no such stream":     {errors.New("cannot get stream reader"), nil},
		"denied, named eof":  {fmt.Errorf("no eof for you: %w", errdefs.ErrPermissionDenied), errdefs.ErrPermissionDenied},
		"denied by policy":   {errdefs.ErrPermissionDenied, errdefs.ErrPermissionDenied},
		"agent out of sorts": {errdefs.ErrInternal, errdefs.ErrInternal},
	} {
		t.Run(name, func(t *testing.T) {
			guest, client, _ := started(t)
			guest.Fail("ReadStdout", test.answer)
			if err := client.Process("c", "").CopyStdout(testContext(t), io.Discard); !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
		})
	}
}

func TestCopyOutputInterrupted(t *testing.T) {
	guest, client, fake := started(t)
	p := client.Process("c", "")
	fake.Print("text")
	broken := errors.New("reader went away")
	if err := p.CopyStdout(testContext(t), writerFunc(func([]byte) (int, error) { return 0, broken })); !errors.Is(err, broken) {
		t.Errorf("broken writer: got %v", err)
	}
	ctx, cancel := context.WithCancel(testContext(t))
	result := make(chan error, 1)
	go func() { result <- p.CopyStdout(ctx, io.Discard) }()
	if _, err := guest.WaitCall(ctx, "ReadStdout", 2); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-result; !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: got %v", err)
	}
	go func() { result <- p.CopyStdout(testContext(t), io.Discard) }()
	if _, err := guest.WaitCall(testContext(t), "ReadStdout", 3); err != nil {
		t.Fatal(err)
	}
	guest.Drop()
	if err := <-result; !errdefs.IsUnavailable(err) {
		t.Errorf("guest gone: got %v", err)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func TestCopyStdin(t *testing.T) {
	guest, client, fake := started(t)
	text := strings.Repeat("line\n", inputChunk/2)
	if err := client.Process("c", "").CopyStdin(testContext(t), strings.NewReader(text)); err != nil {
		t.Fatal(err)
	}
	select {
	case <-fake.StdinClosed():
	default:
		t.Error("standard input is still open")
	}
	if fake.Stdin() != text {
		t.Errorf("guest got %d bytes, want %d", len(fake.Stdin()), len(text))
	}
	for _, call := range guest.Calls("WriteStdin") {
		if n := len(call.Request.(*agentpb.WriteStreamRequest).GetData()); n > inputChunk {
			t.Errorf("one call carried %d bytes", n)
		}
	}
}

func TestCopyStdinEnds(t *testing.T) {
	failed := errors.New("disk on fire")
	for name, test := range map[string]struct {
		in     io.Reader
		method string
		answer error
		want   error
		closed bool
	}{
		"process gone":          {in: strings.NewReader("x"), method: "WriteStdin", answer: errdefs.ErrNotFound},
		"process closed stdin":  {in: strings.NewReader("x"), method: "WriteStdin", answer: errors.New("Broken pipe (os error 32)")},
		"gone before close":     {in: strings.NewReader(""), method: "CloseStdin", answer: errdefs.ErrNotFound},
		"denied":                {in: strings.NewReader("x"), method: "WriteStdin", answer: errdefs.ErrPermissionDenied, want: errdefs.ErrPermissionDenied},
		"close denied":          {in: strings.NewReader(""), method: "CloseStdin", answer: errdefs.ErrPermissionDenied, want: errdefs.ErrPermissionDenied},
		"source fails":          {in: iotest.ErrReader(failed), want: failed, closed: true},
		"source ends with data": {in: iotest.DataErrReader(strings.NewReader("x")), closed: true},
	} {
		t.Run(name, func(t *testing.T) {
			guest, client, fake := started(t)
			if test.method != "" {
				guest.Fail(test.method, test.answer)
			}
			if err := client.Process("c", "").CopyStdin(testContext(t), test.in); !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
			closed := false
			select {
			case <-fake.StdinClosed():
				closed = true
			default:
			}
			if closed != test.closed {
				t.Errorf("standard input closed: %v, want %v", closed, test.closed)
			}
		})
	}
}

func TestExec(t *testing.T) {
	guest, client, _ := started(t)
	ctx := testContext(t)
	if _, err := client.ExecProcess(ctx, &agentpb.ExecProcessRequest{ContainerId: "c", ExecId: "e"}); err != nil {
		t.Fatal(err)
	}
	p := client.Process("c", "e")
	if err := p.Resize(ctx, 80, 24); err != nil {
		t.Error(err)
	}
	size := guest.Calls("TtyWinResize")[0].Request.(*agentpb.TtyWinResizeRequest)
	if size.GetColumn() != 80 || size.GetRow() != 24 || size.GetExecId() != "e" {
		t.Errorf("resize was %v", size)
	}
	if err := p.Signal(ctx, uint32(unix.SIGKILL)); err != nil {
		t.Error(err)
	}
	if status, err := p.Wait(ctx); status != 137 || err != nil {
		t.Errorf("exit status %d, %v", status, err)
	}
	if err := p.Signal(ctx, uint32(unix.SIGKILL)); !errdefs.IsNotFound(err) {
		t.Errorf("signal after exit: got %v", err)
	}
	if got := p.String(); got != "exec e of container c" {
		t.Errorf("process is called %q", got)
	}
}

func TestWriteStdinShortAnswers(t *testing.T) {
	for name, taken := range map[string]uint32{"nothing": 0, "more than sent": 9} {
		t.Run(name, func(t *testing.T) {
			p := &Process{client: &Client{AgentServiceService: shortWriter{taken: taken}}, container: "c"}
			if err := p.writeStdin(t.Context(), []byte("abc")); !errdefs.IsInternal(err) {
				t.Errorf("got %v", err)
			}
		})
	}
	p := &Process{client: &Client{AgentServiceService: shortWriter{taken: 1}}, container: "c"}
	if err := p.writeStdin(t.Context(), []byte("abc")); err != nil {
		t.Errorf("one byte a call: got %v", err)
	}
}

// shortWriter is a guest that takes a fixed number of bytes a call.
type shortWriter struct {
	agentpb.AgentServiceService
	taken uint32
}

func (s shortWriter) WriteStdin(context.Context, *agentpb.WriteStreamRequest) (*agentpb.WriteStreamResponse, error) {
	return &agentpb.WriteStreamResponse{Len: s.taken}, nil
}
