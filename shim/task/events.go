package task

import (
	"context"
	"sync"

	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/log"

	eventsapi "github.com/containerd/containerd/api/events"

	cofferevent "github.com/coffer-project/coffer/shim/event"
)

// Topics of containerd's task events.
const (
	topicCreate    = "/tasks/create"
	topicStart     = "/tasks/start"
	topicOOM       = "/tasks/oom"
	topicExit      = "/tasks/exit"
	topicDelete    = "/tasks/delete"
	topicExecAdded = "/tasks/exec-added"
	topicExecStart = "/tasks/exec-started"
	topicPaused    = "/tasks/paused"
	topicResumed   = "/tasks/resumed"
)

func topicOf(event any) string {
	switch e := event.(type) {
	case cofferevent.Event:
		return e.Topic
	case *eventsapi.TaskCreate:
		return topicCreate
	case *eventsapi.TaskStart:
		return topicStart
	case *eventsapi.TaskOOM:
		return topicOOM
	case *eventsapi.TaskExit:
		return topicExit
	case *eventsapi.TaskDelete:
		return topicDelete
	case *eventsapi.TaskExecAdded:
		return topicExecAdded
	case *eventsapi.TaskExecStarted:
		return topicExecStart
	case *eventsapi.TaskPaused:
		return topicPaused
	case *eventsapi.TaskResumed:
		return topicResumed
	}
	return "/unknown"
}

// payload is what is published of an event.
func payload(event any) any {
	if e, ok := event.(cofferevent.Event); ok {
		return e.Encode()
	}
	return event
}

// outbox publishes events one after the other in the order in which they were posted. Posting never waits: containerd
// may be restarting, and no process's end may depend on it.
type outbox struct {
	publisher events.Publisher

	mu      sync.Mutex
	pending []any
	wake    chan struct{} // holds one token when pending has grown
	closed  bool
	done    chan struct{} // closed when the last event after close was handed over
}

func newOutbox(life context.Context, publisher events.Publisher) *outbox {
	o := &outbox{publisher: publisher, wake: make(chan struct{}, 1), done: make(chan struct{})}
	// The last events leave while the shim shuts down, when its own context has ended.
	go o.run(context.WithoutCancel(life))
	return o
}

func (o *outbox) post(event any) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return
	}
	o.pending = append(o.pending, event)
	o.signal()
}

func (o *outbox) signal() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// close publishes what is pending and waits for that until ctx ends.
func (o *outbox) close(ctx context.Context) error {
	o.mu.Lock()
	o.closed = true
	o.signal()
	o.mu.Unlock()
	select {
	case <-o.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (o *outbox) run(ctx context.Context) {
	defer close(o.done)
	for {
		o.mu.Lock()
		batch, closed := o.pending, o.closed
		o.pending = nil
		o.mu.Unlock()
		for _, event := range batch {
			if err := o.publisher.Publish(ctx, topicOf(event), payload(event)); err != nil {
				// The publisher of containerd's shim library queues what it could not deliver and tries again.
				log.G(ctx).WithError(err).WithField("topic", topicOf(event)).Warn("event not delivered yet")
			}
		}
		if closed && len(batch) == 0 {
			return
		}
		if len(batch) == 0 {
			<-o.wake
		}
	}
}
