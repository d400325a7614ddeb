// Package qmp speaks QEMU's machine protocol: JSON objects, one a line, over a stream that QEMU greets on. It knows no
// command by name. QEMU is the shim's child and runs a hostile guest, so that what it says is bounded and checked for
// form, and nothing more is believed than the command at hand needs.
package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// maxLine bounds one message. QEMU's longest answers (command lists) are some 100 KiB.
const maxLine = 1 << 20

// Event is something that QEMU tells by itself.
type Event struct {
	Name string
	// Data is the event's own JSON object, nil when it has none.
	Data json.RawMessage
}

// Error is QEMU's refusal of a command.
type Error struct {
	Class string `json:"class"`
	Desc  string `json:"desc"`
}

func (e *Error) Error() string { return fmt.Sprintf("qemu refused: %s (%s)", e.Desc, e.Class) }

// Client is one session. Its methods are safe for concurrent use.
type Client struct {
	conn   net.Conn
	events chan Event
	done   chan struct{}

	writeMu sync.Mutex

	mu      sync.Mutex
	next    uint64
	waiting map[string]chan<- message
	err     error // why the session ended; valid once done is closed
}

// message is anything that QEMU sends.
type message struct {
	Greeting json.RawMessage `json:"QMP"`
	Event    string          `json:"event"`
	Data     json.RawMessage `json:"data"`
	Return   json.RawMessage `json:"return"`
	Error    *Error          `json:"error"`
	ID       *string         `json:"id"`
}

type command struct {
	Execute   string `json:"execute"`
	Arguments any    `json:"arguments,omitempty"`
	ID        string `json:"id"`
}

// New waits for the greeting on conn, which it owns from now on, and ends the capability negotiation. The caller
// receives from Events until it is closed, or else commands stall.
func New(ctx context.Context, conn net.Conn) (_ *Client, retErr error) {
	c := &Client{conn: conn, events: make(chan Event, 16), done: make(chan struct{}), waiting: map[string]chan<- message{}}
	defer func() {
		if retErr != nil {
			conn.Close()
		}
	}()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	lines := newScanner(conn)
	greeting, err := readMessage(lines)
	if !stop() {
		return nil, fmt.Errorf("wait for qmp greeting: %w", ctx.Err())
	}
	if err == nil && greeting.Greeting == nil {
		err = fmt.Errorf("no greeting: %w", errdefs.ErrInvalidArgument)
	}
	if err != nil {
		return nil, fmt.Errorf("wait for qmp greeting: %w", err)
	}
	go c.receive(lines)
	if err := c.Execute(ctx, "qmp_capabilities", nil, nil); err != nil {
		c.end(err)
		return nil, err
	}
	return c, nil
}

func newScanner(conn net.Conn) *bufio.Scanner {
	lines := bufio.NewScanner(conn)
	lines.Buffer(make([]byte, 0, 4096), maxLine)
	return lines
}

func readMessage(lines *bufio.Scanner) (message, error) {
	if !lines.Scan() {
		if err := lines.Err(); errors.Is(err, syscall.ECONNRESET) {
			// QEMU ended with something of ours unread.
			return message{}, fmt.Errorf("qemu closed the qmp session: %w: %w", err, errdefs.ErrUnavailable)
		} else if err != nil {
			return message{}, err
		}
		return message{}, fmt.Errorf("qemu closed the qmp session: %w", errdefs.ErrUnavailable)
	}
	return parse(lines.Bytes())
}

func parse(line []byte) (message, error) {
	var m message
	if err := json.Unmarshal(line, &m); err != nil {
		return message{}, fmt.Errorf("parse qmp message: %w: %w", errdefs.ErrInvalidArgument, err)
	}
	return m, nil
}

// receive hands on answers and events until the session ends.
func (c *Client) receive(lines *bufio.Scanner) {
	defer close(c.events)
	for {
		m, err := readMessage(lines)
		if err != nil {
			c.end(err)
			return
		}
		switch {
		case m.Event != "":
			select {
			case c.events <- Event{Name: m.Event, Data: m.Data}:
			case <-c.done:
				return
			}
		case m.ID != nil:
			c.mu.Lock()
			answer := c.waiting[*m.ID]
			delete(c.waiting, *m.ID)
			c.mu.Unlock()
			if answer != nil { // nobody waits any more when its ctx ended
				answer <- m
			}
		default:
			// An error without id answers a command that QEMU could not parse: which one is unknown.
			c.end(fmt.Errorf("qmp message is neither event nor answer: %w", errors.Join(errdefs.ErrInvalidArgument, refusal(m))))
			return
		}
	}
}

func refusal(m message) error {
	if m.Error == nil {
		return nil
	}
	return m.Error
}

func (c *Client) end(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.err = err
		close(c.done)
		c.conn.Close()
	}
}

// Execute sends a command with its arguments (nil for none) and waits for the answer, which is decoded into result
// unless that is nil. QEMU's refusal is an *Error; an ended session is errdefs.ErrUnavailable.
func (c *Client) Execute(ctx context.Context, name string, arguments, result any) error {
	return c.ExecuteWithFile(ctx, name, arguments, result, nil)
}

// ExecuteWithFile is Execute for a command that takes an open file, which the caller keeps. It fails with
// errdefs.ErrNotImplemented when the session is not on a unix socket.
func (c *Client) ExecuteWithFile(ctx context.Context, name string, arguments, result any, file *os.File) error {
	answers := make(chan message, 1)
	c.mu.Lock()
	c.next++
	id := strconv.FormatUint(c.next, 10)
	c.waiting[id] = answers
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.waiting, id)
	}()
	if err := c.send(ctx, command{Execute: name, Arguments: arguments, ID: id}, file); err != nil {
		return fmt.Errorf("qmp %s: %w", name, err)
	}
	var answer message
	select {
	case answer = <-answers:
	case <-ctx.Done():
		return fmt.Errorf("qmp %s: %w", name, ctx.Err())
	case <-c.done:
		// The answer to a command that ends QEMU may have come just before.
		select {
		case answer = <-answers:
		default:
			return fmt.Errorf("qmp %s: %w", name, c.Err())
		}
	}
	if answer.Error != nil {
		return fmt.Errorf("qmp %s: %w", name, answer.Error)
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(answer.Return, result); err != nil {
		return fmt.Errorf("qmp %s: parse answer: %w", name, err)
	}
	return nil
}

func (c *Client) send(ctx context.Context, cmd command, file *os.File) error {
	line, err := json.Marshal(cmd)
	if err != nil {
		return err
	}
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	// A write that was cut short would spoil the session, so that one that ctx ends, ends the session.
	stop := context.AfterFunc(ctx, func() { _ = c.conn.SetWriteDeadline(time.Unix(1, 0)) })
	err = c.write(append(line, '\n'), file)
	stopped := stop()
	if err != nil {
		err = fmt.Errorf("send: %w: %w", errdefs.ErrUnavailable, err)
		c.end(err)
		return err
	}
	if !stopped {
		c.end(fmt.Errorf("send: %w", ctx.Err()))
	}
	return nil
}

// write sends a line, with a file that belongs to it unless that is nil.
func (c *Client) write(line []byte, file *os.File) error {
	if file == nil {
		_, err := c.conn.Write(line)
		return err
	}
	socket, ok := c.conn.(*net.UnixConn)
	if !ok {
		return fmt.Errorf("send a file over %T: %w", c.conn, errdefs.ErrNotImplemented)
	}
	n, _, err := socket.WriteMsgUnix(line, unix.UnixRights(int(file.Fd())), nil)
	runtime.KeepAlive(file)
	if err != nil {
		return err
	}
	// The file went with the first part; a stream socket may take the rest later.
	_, err = c.conn.Write(line[n:])
	return err
}

// Events is what QEMU tells by itself. It is closed when the session has ended.
func (c *Client) Events() <-chan Event { return c.events }

// Done is closed when the session has ended; Err then tells why.
func (c *Client) Done() <-chan struct{} { return c.done }

// Err tells why the session ended, nil while it lives.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close ends the session. QEMU goes on.
func (c *Client) Close() error {
	c.end(fmt.Errorf("qmp session was closed: %w", errdefs.ErrUnavailable))
	return nil
}
