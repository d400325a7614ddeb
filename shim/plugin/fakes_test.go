package plugin

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"testing"
	"time"

	eventsapi "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/ttrpc"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/status"

	"github.com/coffer-project/coffer/proto/mux"
	"github.com/coffer-project/coffer/shim/agent"
	"github.com/coffer-project/coffer/shim/network"
	"github.com/coffer-project/coffer/shim/sandbox"
)

// fakeNetwork hands out one attachment per namespace and counts them.
type fakeNetwork struct {
	mu          sync.Mutex
	failWith    error
	failRelease error
	failForward error
	attached    map[string]int
	given       map[*network.Attachment]string
	forwards    int
}

func (f *fakeNetwork) Attach(_ context.Context, netns string) (*network.Attachment, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.failWith != nil {
		return nil, f.failWith
	}
	if f.given == nil {
		f.given = map[*network.Attachment]string{}
	}
	attachment := fakeAttachment()
	f.given[attachment] = netns
	f.attached[netns]++
	return attachment, nil
}

func (f *fakeNetwork) Release(_ context.Context, attachment *network.Attachment) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.failRelease != nil {
		return f.failRelease
	}
	if netns, ok := f.given[attachment]; ok {
		f.attached[netns]--
		delete(f.given, attachment)
	}
	return nil
}

func (f *fakeNetwork) Detach(context.Context, string) error { return nil }

// forward is sandbox.Platform's Forward. It tries the way into the guest, as the first connection would.
func (f *fakeNetwork) forward(ctx context.Context, netns string, dial agent.DialFunc) (io.Closer, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.attached[netns] == 0 {
		return nil, errors.New("forward without a network")
	}
	if f.failForward != nil {
		return nil, f.failForward
	}
	conn, err := dial(ctx, mux.AgentPort)
	if err != nil {
		return nil, err
	}
	f.forwards++
	return forwarding{f, conn}, nil
}

// forwarding counts its end and must end before its network.
type forwarding struct {
	network *fakeNetwork
	conn    io.Closer
}

func (f forwarding) Close() error {
	f.network.mu.Lock()
	defer f.network.mu.Unlock()
	f.network.forwards--
	return f.conn.Close()
}

// forwarded is how many pods have port-forward.
func (f *fakeNetwork) forwarded() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.forwards
}

// Make counts a namespace as attached to itself.
func (f *fakeNetwork) Make(path string) (sandbox.Namespace, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.attached[path]++
	return &fakeNamespace{network: f, path: path}, nil
}

func (f *fakeNetwork) Remove(string) error { return nil }

type fakeNamespace struct {
	network *fakeNetwork
	path    string
	once    sync.Once
}

// fakeTID is the thread that is in a fake namespace.
const fakeTID = 4242

func (*fakeNamespace) TID() int { return fakeTID }

func (n *fakeNamespace) Close() error {
	n.once.Do(func() {
		n.network.mu.Lock()
		defer n.network.mu.Unlock()
		n.network.attached[n.path]--
	})
	return nil
}

func (f *fakeNetwork) fail(attach, release error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.failWith, f.failRelease = attach, release
}

func (f *fakeNetwork) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	sum := 0
	for _, n := range f.attached {
		sum += n
	}
	return sum
}

// eventLog is a publisher that remembers.
type eventLog struct {
	mu      sync.Mutex
	topics  []string
	events  []any
	changed chan struct{}
}

func newEventLog() *eventLog { return &eventLog{changed: make(chan struct{})} }

func (l *eventLog) Publish(_ context.Context, topic string, event events.Event) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.topics = append(l.topics, topic)
	l.events = append(l.events, event)
	close(l.changed)
	l.changed = make(chan struct{})
	return nil
}

func (l *eventLog) Close() error { return nil }

// of are the topics of one container's events so far, in order.
func (l *eventLog) of(container string) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var topics []string
	for i, event := range l.events {
		if named, ok := event.(interface{ GetContainerID() string }); ok && named.GetContainerID() == container {
			topics = append(topics, l.topics[i])
		}
	}
	return topics
}

// awaitExit waits for the exit event of a process.
func (l *eventLog) awaitExit(t *testing.T, id string) (exit *eventsapi.TaskExit) {
	t.Helper()
	if !l.await(func() bool {
		exits := l.exits()
		i := slices.IndexFunc(exits, func(e *eventsapi.TaskExit) bool { return e.GetID() == id })
		if i >= 0 {
			exit = exits[i]
		}
		return i >= 0
	}) {
		t.Fatalf("no exit event of %s", id)
	}
	return exit
}

// awaitTopics waits until a container's events are the wanted ones.
func (l *eventLog) awaitTopics(t *testing.T, container string, want ...string) {
	t.Helper()
	if !l.await(func() bool { return slices.Equal(l.of(container), want) }) {
		t.Fatalf("events of %s are %q, want %q", container, l.of(container), want)
	}
}

// await looks at the events, now and after each further one, until it finds what it wants, and tells whether it did.
func (l *eventLog) await(look func() (found bool)) bool {
	deadline := time.After(patience)
	for {
		l.mu.Lock()
		changed := l.changed
		l.mu.Unlock()
		if look() {
			return true
		}
		select {
		case <-changed:
		case <-deadline:
			return false
		}
	}
}

func mkfifo(tb testing.TB, path string) {
	tb.Helper()
	must(tb, unix.Mkfifo(path, 0o600))
}

func statusError(resp *ttrpc.Response) error { return status.ErrorProto(resp.GetStatus()) }

// exits are the exit events so far, in order.
func (l *eventLog) exits() []*eventsapi.TaskExit {
	l.mu.Lock()
	defer l.mu.Unlock()
	var exits []*eventsapi.TaskExit
	for _, event := range l.events {
		if exit, ok := event.(*eventsapi.TaskExit); ok {
			exits = append(exits, exit)
		}
	}
	return exits
}

// setIdle changes the time that an unneeded shim lives.
func (g *guard) setIdle(idle time.Duration) {
	g.mu.Lock()
	g.idle = idle
	g.mu.Unlock()
	g.touch()
}

// fakeRecords are containerd's records of containers.
type fakeRecords struct {
	images map[string]string
	groups map[string]bool // whether a group was asked for

	mu    sync.Mutex
	err   error
	calls int // of SetUser
	users map[string]specs.User
}

func newFakeRecords() *fakeRecords {
	return &fakeRecords{images: map[string]string{}, groups: map[string]bool{}, users: map[string]specs.User{}}
}

func (f *fakeRecords) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
}

func (f *fakeRecords) Image(_ context.Context, id string) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.images[id], f.err
}

func (f *fakeRecords) AsksForGroup(_ context.Context, id string) (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.groups[id], f.err
}

func (f *fakeRecords) SetUser(_ context.Context, id string, user specs.User) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls++
	if f.err == nil {
		f.users[id] = user
	}
	return f.err
}

// user is what SetUser has put into a record.
func (f *fakeRecords) user(id string) (specs.User, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	user, ok := f.users[id]
	return user, ok
}

// attempts is how often SetUser was called.
func (f *fakeRecords) attempts() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls
}
