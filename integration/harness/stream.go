package harness

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/websocket"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The channels of Kubernetes' remote command protocol: the first byte of each message.
const (
	channelStdin byte = iota
	channelStdout
	channelStderr
	channelError
	channelResize
)

const streamProtocol = "v4.channel.k8s.io"

// Stream is a client on the streams of a process: what kubectl attach and kubectl exec open.
type Stream struct {
	conn *websocket.Conn
	done chan struct{}

	mu             sync.Mutex
	stdout, stderr bytes.Buffer
	changed        chan struct{} // closed and replaced with every message
	status         error         // valid once done is closed
}

// Attach joins the streams of a running container.
func (n *Node) Attach(ctx context.Context, c *Container, tty, stdin bool) (*Stream, error) {
	resp, err := n.CRI.Runtime.Attach(ctx, &runtime.AttachRequest{
		ContainerId: c.ID, Tty: tty, Stdin: stdin, Stdout: true, Stderr: !tty,
	})
	if err != nil {
		return nil, fmt.Errorf("attach to container %s: %w", c.ID, err)
	}
	return n.stream(ctx, resp.Url)
}

// Exec runs a command with its streams connected.
func (n *Node) Exec(ctx context.Context, c *Container, tty bool, command ...string) (*Stream, error) {
	resp, err := n.CRI.Runtime.Exec(ctx, &runtime.ExecRequest{
		ContainerId: c.ID, Cmd: command, Tty: tty, Stdin: true, Stdout: true, Stderr: !tty,
	})
	if err != nil {
		return nil, fmt.Errorf("exec in container %s: %w", c.ID, err)
	}
	return n.stream(ctx, resp.Url)
}

func (n *Node) stream(ctx context.Context, address string) (*Stream, error) {
	target, err := url.Parse(address)
	if err != nil {
		return nil, err
	}
	config, err := websocket.NewConfig("ws"+strings.TrimPrefix(address, "http"), address)
	if err != nil {
		return nil, err
	}
	config.Protocol = []string{streamProtocol}
	// containerd's streaming server listens on loopback inside the node's network.
	raw, err := n.ns.Dial(ctx, "tcp", target.Host)
	if err != nil {
		return nil, err
	}
	conn, err := websocket.NewClient(config, raw)
	if err != nil {
		raw.Close()
		return nil, fmt.Errorf("open stream %s: %w", address, err)
	}
	s := &Stream{conn: conn, done: make(chan struct{}), changed: make(chan struct{})}
	if err := s.awaitGreeting(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("open stream %s: %w", address, err), s.Close())
	}
	return s, nil
}

// awaitGreeting begins to read and waits for the empty message by which the server says that the streams are there. A
// client that was gone when it came would answer it by resetting the connection, which takes from the server all input that
// it has not read yet.
func (s *Stream) awaitGreeting(ctx context.Context) error {
	greeted := s.changed
	go s.read()
	select {
	case <-greeted:
		return nil
	case <-s.done:
		return errors.Join(errors.New("it ended without a greeting"), s.status)
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *Stream) read() {
	defer close(s.done)
	for {
		var message []byte
		if err := websocket.Message.Receive(s.conn, &message); err != nil {
			if s.status == nil && !errors.Is(err, io.EOF) {
				s.status = err
			}
			return
		}
		if len(message) > 0 {
			s.take(message[0], message[1:])
		}
	}
}

func (s *Stream) take(channel byte, data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch channel {
	case channelStdout:
		s.stdout.Write(data)
	case channelStderr:
		s.stderr.Write(data)
	case channelError:
		s.status = parseStatus(data)
	}
	close(s.changed)
	s.changed = make(chan struct{})
}

// ExitError is the end of a streamed command with another status than 0.
type ExitError string

func (e ExitError) Error() string { return "exit status " + string(e) }

// parseStatus reads the metav1.Status with which a stream ends.
func parseStatus(data []byte) error {
	if len(data) == 0 {
		return nil // the channel's greeting
	}
	var status struct {
		Status, Message string
		Details         struct {
			Causes []struct{ Reason, Message string }
		}
	}
	if err := json.Unmarshal(data, &status); err != nil {
		return fmt.Errorf("read the stream's status %q: %w", data, err)
	}
	if status.Status == "Success" {
		return nil
	}
	for _, cause := range status.Details.Causes {
		if cause.Reason == "ExitCode" {
			return ExitError(cause.Message)
		}
	}
	return errors.New(status.Message)
}

// Send writes to the process's standard input.
func (s *Stream) Send(text string) error {
	return websocket.Message.Send(s.conn, append([]byte{channelStdin}, text...))
}

// Resize tells the process the size of its terminal.
func (s *Stream) Resize(width, height uint16) error {
	return websocket.Message.Send(s.conn, append([]byte{channelResize}, fmt.Sprintf(`{"Width":%d,"Height":%d}`, width, height)...))
}

// Expect waits until the standard output contains text.
func (s *Stream) Expect(ctx context.Context, text string) error {
	for {
		s.mu.Lock()
		have, changed := s.stdout.String(), s.changed
		s.mu.Unlock()
		if strings.Contains(have, text) {
			return nil
		}
		select {
		case <-changed:
		case <-s.done:
			if have, _ = s.Output(); strings.Contains(have, text) {
				return nil
			}
			return fmt.Errorf("the stream ended (%v) without %q; it said %q", s.status, text, have) //nolint:errorlint // nil when the command succeeded
		case <-ctx.Done():
			return fmt.Errorf("wait for %q: %w; the stream said %q", text, ctx.Err(), have)
		}
	}
}

// Output is what the process has written so far.
func (s *Stream) Output() (stdout, stderr string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stdout.String(), s.stderr.String()
}

// Wait waits for the end of the stream. The error tells how a command ended: ExitError for another status than 0.
func (s *Stream) Wait(ctx context.Context) error {
	select {
	case <-s.done:
		return s.status
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Close ends the client; to a process this is the end of its standard input.
func (s *Stream) Close() error {
	err := s.conn.Close()
	select {
	case <-s.done:
	case <-time.After(stopTimeout):
		return errors.Join(err, errors.New("the stream did not end when its connection was closed"))
	}
	return err
}
