package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const greeting = `{"QMP": {"version": {"qemu": {"major": 10}}, "capabilities": ["oob"]}}`

// server is a scripted QEMU: it greets, and answers each command with what the script says.
type server struct {
	greeting string
	// answer returns the lines for a command; %ID% stands for its id. An empty result closes the session.
	answer func(name string, arguments json.RawMessage) []string
}

func ok(string, json.RawMessage) []string { return []string{`{"return": {}, "id": "%ID%"}`} }

// after answers the capability negotiation as QEMU does and leaves the rest to answer.
func after(answer func(name string, arguments json.RawMessage) []string) func(string, json.RawMessage) []string {
	return func(name string, arguments json.RawMessage) []string {
		if name == "qmp_capabilities" {
			return ok(name, nil)
		}
		return answer(name, arguments)
	}
}

func (s server) start(t *testing.T) net.Conn {
	t.Helper()
	client, conn := net.Pipe()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer conn.Close()
		if _, err := fmt.Fprintln(conn, s.greeting); err != nil {
			return
		}
		lines := bufio.NewScanner(conn)
		for lines.Scan() {
			var cmd struct {
				Execute, ID string
				Arguments   json.RawMessage
			}
			if json.Unmarshal(lines.Bytes(), &cmd) != nil {
				return
			}
			answers := s.answer(cmd.Execute, cmd.Arguments)
			if len(answers) == 0 {
				return
			}
			for _, line := range answers {
				if _, err := fmt.Fprintln(conn, strings.ReplaceAll(line, "%ID%", cmd.ID)); err != nil {
					return
				}
			}
		}
	}()
	t.Cleanup(func() { client.Close(); conn.Close(); <-ended })
	return client
}

func dial(t *testing.T, answer func(string, json.RawMessage) []string) *Client {
	t.Helper()
	c, err := New(t.Context(), server{greeting, after(answer)}.start(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestExecute(t *testing.T) {
	c := dial(t, func(name string, arguments json.RawMessage) []string {
		return []string{
			`{"timestamp": {"seconds": 1}, "event": "RESUME"}`,
			`{"return": {"name": "` + name + `", "got": ` + string(arguments) + `}, "id": "%ID%"}`,
			`{"event": "SHUTDOWN", "data": {"guest": true}}`,
		}
	})
	var result struct {
		Name string
		Got  map[string]int
	}
	if err := c.Execute(t.Context(), "query-x", map[string]int{"a": 1}, &result); err != nil {
		t.Fatal(err)
	}
	if result.Name != "query-x" || result.Got["a"] != 1 {
		t.Errorf("result %+v", result)
	}
	if e := <-c.Events(); e.Name != "RESUME" || e.Data != nil {
		t.Errorf("event %+v", e)
	}
	if e := <-c.Events(); e.Name != "SHUTDOWN" || string(e.Data) != `{"guest": true}` {
		t.Errorf("event %+v", e)
	}
	c.Close()
	if _, open := <-c.Events(); open {
		t.Error("events go on after close")
	}
}

func TestRefusal(t *testing.T) {
	c := dial(t, func(string, json.RawMessage) []string {
		return []string{`{"error": {"class": "CommandNotFound", "desc": "no such thing"}, "id": "%ID%"}`}
	})
	err := c.Execute(t.Context(), "x", nil, nil)
	var refused *Error
	if !errors.As(err, &refused) || refused.Class != "CommandNotFound" || !strings.Contains(err.Error(), "no such thing") {
		t.Errorf("got %v", err)
	}
	if c.Err() != nil {
		t.Errorf("a refusal ended the session: %v", c.Err())
	}
}

func TestSessionFaults(t *testing.T) {
	cases := map[string]struct {
		lines []string
		want  error
	}{
		"closed":       {nil, errdefs.ErrUnavailable},
		"no json":      {[]string{"qemu: fatal"}, errdefs.ErrInvalidArgument},
		"neither":      {[]string{`{"hello": 1}`}, errdefs.ErrInvalidArgument},
		"error no id":  {[]string{`{"error": {"class": "GenericError", "desc": "JSON parse error"}}`}, errdefs.ErrInvalidArgument},
		"id no string": {[]string{`{"return": {}, "id": 1}`}, errdefs.ErrInvalidArgument},
		"endless line": {[]string{`{"return": "` + strings.Repeat("x", maxLine) + `"}`}, bufio.ErrTooLong},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			c := dial(t, func(string, json.RawMessage) []string { return tc.lines })
			if err := c.Execute(t.Context(), "x", nil, nil); !errors.Is(err, tc.want) {
				t.Errorf("got %v", err)
			}
			<-c.Done()
			if err := c.Execute(t.Context(), "y", nil, nil); err == nil {
				t.Error("a command succeeds after the end")
			}
		})
	}
}

// TestReset: a QEMU that ends before it has read a command resets the connection. That is an end of the session as any other.
func TestReset(t *testing.T) {
	listener, err := net.Listen("unix", filepath.Join(t.TempDir(), "qmp"))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, greeting+"\n")
		raw, err := conn.(*net.UnixConn).SyscallConn()
		if err != nil {
			return
		}
		// Wait for the command and leave it unread.
		_ = raw.Read(func(fd uintptr) bool {
			_, _, err := unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_PEEK)
			return err == nil
		})
	}()
	conn, err := net.Dial("unix", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := New(t.Context(), conn); !errdefs.IsUnavailable(err) {
		t.Errorf("got %v", err)
	}
}

func TestGreetingFaults(t *testing.T) {
	for name, text := range map[string]string{"none": "{}", "no json": "hello"} {
		t.Run(name, func(t *testing.T) {
			if _, err := New(t.Context(), server{text, ok}.start(t)); !errdefs.IsInvalidArgument(err) {
				t.Errorf("got %v", err)
			}
		})
	}
	t.Run("refused", func(t *testing.T) {
		refuse := func(string, json.RawMessage) []string {
			return []string{`{"error": {"class": "X", "desc": "no"}, "id": "%ID%"}`}
		}
		var refused *Error
		if _, err := New(t.Context(), server{greeting, refuse}.start(t)); !errors.As(err, &refused) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("silence", func(t *testing.T) {
		client, silent := net.Pipe()
		defer silent.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		if _, err := New(ctx, client); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	})
}

func TestExecuteDeadlineKeepsSession(t *testing.T) {
	release := make(chan struct{})
	c := dial(t, func(name string, _ json.RawMessage) []string {
		if name == "slow" {
			<-release
		}
		return []string{`{"return": "` + name + `", "id": "%ID%"}`}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := c.Execute(ctx, "slow", nil, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %v", err)
	}
	close(release)
	var result string
	if err := c.Execute(t.Context(), "next", nil, &result); err != nil || result != "next" {
		t.Errorf("got %q, %v: the late answer must not be taken for this one", result, err)
	}
}

// FuzzReceive feeds a session whatever bytes QEMU may send after the greeting.
func FuzzReceive(f *testing.F) {
	f.Add([]byte(`{"return": {}, "id": "1"}` + "\n" + `{"event": "STOP"}`))
	f.Add([]byte(`{"id": null}` + "\n\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		client, qemu := net.Pipe()
		go func() {
			_, _ = fmt.Fprintln(qemu, greeting)
			go func() { _, _ = io.Copy(io.Discard, qemu) }()
			_, _ = qemu.Write(raw)
			qemu.Close()
		}()
		c, err := New(t.Context(), client)
		if err != nil {
			return
		}
		for range c.Events() {
		}
		if <-c.Done(); c.Err() == nil {
			t.Error("ended without a reason")
		}
	})
}
