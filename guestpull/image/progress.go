package image

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	guestpull "github.com/coffer-project/coffer/proto/guestpull/v1"
)

// Stages of a pull as Progress names them.
const (
	stageResolve = "resolve"
	stageVerify  = "verify"
	stageAttest  = "attest"
	stageFetch   = "fetch"
	stageDone    = "done"
	stageFailed  = "failed"
)

const (
	// byteInterval is how often a waiting host hears of nothing but bytes.
	byteInterval = time.Second
	// waitLimit ends a wait in which nothing happens.
	waitLimit = 20 * time.Second
	// maxWaiting bounds the hosts' waits at one time; a shim has one for each container that it creates.
	maxWaiting = 64
)

// Progress says how far a pull has come. The host is told all of it, and could count most of it on the wire.
type Progress struct {
	// Serial grows with every change, across all pulls.
	Serial         uint64
	Reference      string
	ManifestDigest digest.Digest
	Stage          string
	// Layers and Bytes, the sum of the layers' packed sizes, are 0 until the image is resolved.
	Layers, LayersDone  int
	Bytes, BytesFetched int64
	// Rate is bytes fetched per second, of late while the pull goes on, and over the whole of it at its end.
	Rate int64
	// Took is the time since the pull began, or how long it took.
	Took time.Duration
}

// ended tells whether no more will change.
func (p *Progress) ended() bool { return p.Stage == stageDone || p.Stage == stageFailed }

// Proto returns the progress as the host gets it.
func (p *Progress) Proto() *guestpull.PullProgress {
	return &guestpull.PullProgress{
		Serial: p.Serial, Reference: p.Reference, ManifestDigest: p.ManifestDigest.String(), Phase: p.Stage,
		Layers: uint32(p.Layers), LayersDone: uint32(p.LayersDone), Bytes: p.Bytes, BytesFetched: p.BytesFetched,
		BytesPerSecond: p.Rate, Micros: p.Took.Microseconds(),
	}
}

// Tracker knows the latest pull of each container. It is safe for concurrent use.
type Tracker struct {
	mu      sync.Mutex
	serial  uint64
	waiting int
	pulls   map[string]*tracked
	changed chan struct{} // closed and replaced whenever there is more to tell than bytes
}

// tracked is one pull; the tracker's lock guards it.
type tracked struct {
	tracker *Tracker
	state   Progress
	told    int64 // bytes that the serial stands for
	began   time.Time
	meter   meter
}

// NewTracker returns a Tracker that knows of no pull.
func NewTracker() *Tracker {
	return &Tracker{pulls: map[string]*tracked{}, changed: make(chan struct{})}
}

// Wait returns the progress of a container's latest pull once it is newer than seen, or what is known after waitLimit.
// NotFound: nothing is known by then. ResourceExhausted: too many wait already.
func (t *Tracker) Wait(ctx context.Context, containerID string, seen uint64) (*Progress, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.waiting >= maxWaiting {
		return nil, fmt.Errorf("%d requests wait for pulls already: %w", t.waiting, errdefs.ErrResourceExhausted)
	}
	t.waiting++
	defer func() { t.waiting-- }()
	limit := time.NewTimer(waitLimit)
	defer limit.Stop()
	beat := time.NewTicker(byteInterval)
	defer beat.Stop()
	for late := false; ; {
		if p, ok := t.pulls[containerID]; ok && (p.state.Serial > seen || late) {
			p.told = p.state.BytesFetched
			return p.now(), nil
		}
		if late {
			return nil, fmt.Errorf("no pull for container %s: %w", containerID, errdefs.ErrNotFound)
		}
		changed, bytes := t.changed, false
		t.mu.Unlock()
		var err error
		select {
		case <-changed:
		case <-beat.C:
			bytes = true
		case <-limit.C:
			late = true
		case <-ctx.Done():
			err = ctx.Err()
		}
		t.mu.Lock()
		if err != nil {
			return nil, err
		}
		if p, ok := t.pulls[containerID]; ok && bytes && p.state.BytesFetched != p.told {
			t.stamp(p)
		}
	}
}

// Latest returns the progress of a container's latest pull as it is. NotFound: nothing is known.
func (t *Tracker) Latest(containerID string) (*Progress, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p, ok := t.pulls[containerID]
	if !ok {
		return nil, fmt.Errorf("no pull for container %s: %w", containerID, errdefs.ErrNotFound)
	}
	return p.now(), nil
}

// now completes the progress by what depends on the time. The lock is held.
func (p *tracked) now() *Progress {
	state := p.state
	if !state.ended() {
		state.Took = time.Since(p.began)
		state.Rate = p.meter.rate(state.Took, state.BytesFetched)
	}
	return &state
}

// stamp makes a pull newer than whatever was seen of it. The lock is held.
func (t *Tracker) stamp(p *tracked) {
	t.serial++
	p.state.Serial = t.serial
}

// begin starts to follow a pull.
func (t *Tracker) begin(containerID, reference string) *tracked {
	p := &tracked{tracker: t, began: time.Now(), state: Progress{Reference: reference, Stage: stageResolve}}
	t.mu.Lock()
	t.pulls[containerID] = p
	t.mu.Unlock()
	p.change(func(*Progress) {})
	return p
}

// forget ends the memory of a container's pull.
func (t *Tracker) forget(containerID string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.pulls, containerID)
}

// change makes a change that those who wait hear of at once.
func (p *tracked) change(change func(*Progress)) {
	t := p.tracker
	t.mu.Lock()
	defer t.mu.Unlock()
	change(&p.state)
	t.stamp(p)
	close(t.changed)
	t.changed = make(chan struct{})
}

// resolved tells what there is to fetch.
func (p *tracked) resolved(found *resolved) {
	p.change(func(s *Progress) {
		s.Stage, s.ManifestDigest, s.Layers = stageVerify, found.digest, len(found.layers)
		for _, l := range found.layers {
			s.Bytes += l.desc.Size
		}
	})
}

func (p *tracked) stage(stage string) {
	p.change(func(s *Progress) {
		if s.Stage = stage; s.ended() {
			s.Took = time.Since(p.began)
			s.Rate = int64(float64(s.BytesFetched) / max(s.Took, time.Microsecond).Seconds())
		}
	})
}

// final returns the progress after its end.
func (p *tracked) final() Progress {
	p.tracker.mu.Lock()
	defer p.tracker.mu.Unlock()
	return p.state
}

// again tells that all layers are fetched once more, but those that are there.
func (p *tracked) again() {
	p.change(func(s *Progress) {
		s.LayersDone, s.BytesFetched, p.meter = 0, 0, meter{at: time.Since(p.began)}
	})
}

func (p *tracked) layerDone() { p.change(func(s *Progress) { s.LayersDone++ }) }

// count counts the bytes that are read of a layer.
func (p *tracked) count(r io.Reader) io.Reader { return &countingReader{r: r, pull: p} }

type countingReader struct {
	r    io.Reader
	pull *tracked
}

func (c *countingReader) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	t := c.pull.tracker
	t.mu.Lock()
	c.pull.state.BytesFetched += int64(n)
	t.mu.Unlock()
	return n, err
}
