package plugin

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/api/types/transfer"
	"github.com/opencontainers/go-digest"

	guestpullpb "github.com/coffer-project/coffer/proto/guestpull/v1"
	"github.com/coffer-project/coffer/shim/agent/agenttest"
	"github.com/coffer-project/coffer/shim/event"
)

// ours are Coffer's own events so far, in order.
func (l *eventLog) ours(t *testing.T) []*event.Event {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	var all []*event.Event
	for i, published := range l.events {
		if p, ok := published.(*transfer.Progress); ok {
			e, err := event.Decode(l.topics[i], p)
			must(t, err)
			all = append(all, e)
		}
	}
	return all
}

// awaitOurs waits for an event of a topic.
func (l *eventLog) awaitOurs(t *testing.T, topic string) (found *event.Event) {
	t.Helper()
	if !l.await(func() bool {
		all := l.ours(t)
		i := slices.IndexFunc(all, func(e *event.Event) bool { return e.Topic == topic })
		if i >= 0 {
			found = all[i]
		}
		return i >= 0
	}) {
		t.Fatalf("no event %s", topic)
	}
	return found
}

// createSlowly begins a creation that ends when the returned function is called, with its error.
func (h *harness) createSlowly(id string, outcome error) (finish func() error) {
	h.t.Helper()
	release := make(chan struct{})
	h.guest.Intercept("CreateContainer", func(ctx context.Context) error {
		select {
		case <-release:
			return outcome
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	created := make(chan error, 1)
	go func() { created <- h.create(id, stdioPaths{}, nil) }()
	return func() error {
		close(release)
		return <-created
	}
}

func TestPullEvents(t *testing.T) {
	h := newHarness(t)
	h.runSandbox()
	finish := h.createSlowly("c", nil)
	manifest := digest.FromString("manifest")
	must(t, h.guest.Progress(h.ctx, &guestpullpb.PullProgress{
		Serial: 1, Phase: "fetch", ManifestDigest: manifest.String(), Layers: 3, LayersDone: 1, Bytes: 100, BytesFetched: 40, BytesPerSecond: 20,
	}))
	e := h.events.awaitOurs(t, event.PullProgress)
	if e.Sandbox != podID || e.Container != "c" || e.Name != "registry.example/app:1" || e.Digest != manifest.String() {
		t.Errorf("event names %+v", e)
	}
	if e.Phase != "fetch" || e.Layers != 3 || e.LayersDone != 1 || e.Bytes != 40 || e.Rate != 20 || e.Total != 100 {
		t.Errorf("event tells %+v", e)
	}
	if c := h.report().Containers["c"]; c.State != "creating" || c.Progress == nil || c.Progress.Bytes != 40 || c.Progress.BytesPerSecond != 20 || c.Progress.Micros <= 0 {
		t.Errorf("report of the container meanwhile is %+v", c)
	}
	must(t, finish())
	if e := h.events.awaitOurs(t, event.PullDone); e.Took <= 0 || e.Phase != "done" || e.Bytes != e.Total {
		t.Errorf("last event tells %+v", e)
	}
	if c := h.report().Containers["c"]; c.Progress != nil {
		t.Errorf("report still tells of a pull: %+v", c.Progress)
	}
}

func TestPullFailureEvent(t *testing.T) {
	h := newHarness(t)
	h.runSandbox()
	finish := h.createSlowly("c", errors.New("the registry is on fire"))
	if err := finish(); err == nil {
		t.Fatal("the container was created")
	}
	if e := h.events.awaitOurs(t, event.PullFailed); !strings.Contains(e.Error, "on fire") || e.Took <= 0 {
		t.Errorf("event tells %+v", e)
	}
}

// TestHostilePull: a guest can say nothing that the node's events could not say of an honest one, nor flood them.
func TestHostilePull(t *testing.T) {
	h := newHarness(t)
	h.runSandbox()
	finish := h.createSlowly("c", nil)
	for i, news := range []*guestpullpb.PullProgress{
		{Phase: "owned\x1b[2J", Reference: "evil", ManifestDigest: strings.Repeat("x", 1<<20), Bytes: -1, BytesFetched: 1 << 62},
		{Phase: "fetch", Layers: 1 << 31, LayersDone: 1<<32 - 1, Bytes: 10, BytesFetched: 1 << 62, BytesPerSecond: 1 << 62, Micros: -1, ManifestDigest: "sha256:zz"},
		{Phase: "done"}, {Phase: "failed"}, {Phase: "start"},
	} {
		began := time.Now()
		must(t, h.guest.Progress(h.ctx, news))
		if i > 0 && time.Since(began) < 200*time.Millisecond {
			t.Error("the shim asks as fast as the guest answers")
		}
	}
	must(t, finish())
	h.events.awaitOurs(t, event.PullDone)
	for _, e := range h.events.ours(t) {
		switch {
		case !strings.HasPrefix(e.Topic, event.Prefix+"pull/"):
		case e.Name != "registry.example/app:1" || e.Digest != "":
			t.Errorf("the guest chose a name: %+v", e)
		case e.Layers > 4096 || e.LayersDone > e.Layers || e.Bytes < 0 || e.Bytes > e.Total || e.Rate < 0 || e.Rate > 1<<40:
			t.Errorf("the guest chose figures: %+v", e)
		case e.Topic == event.PullProgress && e.Phase != "fetch":
			t.Errorf("the guest chose a phase: %+v", e)
		}
	}
}

// TestStockGuestPull: a guest without Coffer's services is followed no further, without a word.
func TestStockGuestPull(t *testing.T) {
	h := newHarness(t, agenttest.WithStockAgent())
	h.runSandbox()
	h.run("c")
	h.events.awaitOurs(t, event.PullDone)
	for _, e := range h.events.ours(t) {
		if e.Topic == event.PullProgress || e.Topic == event.PullFailed {
			t.Errorf("unexpected event %+v", e)
		}
	}
}
