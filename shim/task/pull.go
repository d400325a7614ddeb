package task

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"

	agentpb "github.com/coffer-project/coffer/proto/agent"
	guestpullpb "github.com/coffer-project/coffer/proto/guestpull/v1"
	"github.com/coffer-project/coffer/proto/lazyregexp"
	"github.com/coffer-project/coffer/shim/agent"
	"github.com/coffer-project/coffer/shim/event"
	"github.com/coffer-project/coffer/shim/sandbox"
)

const (
	// newsGap is how long the shim waits before it asks a guest for more news, so that one that answers at once costs
	// nothing: this bounds the events of a pull too.
	newsGap = 250 * time.Millisecond
	// bytesGap is how often news of nothing but bytes are published.
	bytesGap = time.Second
	// newsLimit ends the wait for a guest that does not answer: it should after 20 seconds.
	newsLimit = time.Minute
	// maxLayers and maxSteps bound what is taken over from a guest.
	maxLayers = 4096
	maxSteps  = 16
	maxRate   = 1 << 40 // bytes per second
)

// pullPhases are the phases that a guest may name while it pulls. The shim itself says how a pull ended.
var pullPhases = []string{"resolve", "verify", "attest", "fetch"}

var stepPattern = lazyregexp.New(`^[a-z][a-z_]{0,31}$`)

// pull is what the node is told about one container's image while it is pulled in the guest.
type pull struct {
	service *Service
	started time.Time
	over    chan struct{} // closed by end

	mu    sync.Mutex
	ended bool
	last  event.Event
}

// followPull publishes how the pull that the request begins goes on. The caller calls end.
func (s *Service) followPull(ctx context.Context, guest *agent.Client, request *agentpb.CreateContainerRequest) *pull {
	p := &pull{service: s, started: time.Now(), over: make(chan struct{}), last: event.Event{
		Topic: event.PullStarted, Sandbox: s.pod.ID(), Container: request.GetContainerId(),
		Name: request.GetStorages()[0].GetSource(), Phase: "start",
	}}
	s.outbox.post(p.last)
	s.noteCreation(request.GetContainerId(), p)
	// A call that is given up leaves its answer to come, which the connection complains about: so the last one is
	// waited for, here and not by the caller.
	ctx = context.WithoutCancel(ctx)
	go func() {
		if err := p.follow(ctx, guest); err != nil && !errdefs.IsNotImplemented(err) && !errdefs.IsUnavailable(err) {
			log.G(ctx).WithError(err).Debug("guest tells no more of its pull")
		}
	}()
	return p
}

// follow asks for news until the pull is over.
func (p *pull) follow(ctx context.Context, guest *agent.Client) error {
	id := p.last.Container
	var seen uint64
	var told time.Time
	for {
		news, err := p.wait(ctx, guest, id, seen)
		if err != nil && !errdefs.IsNotFound(err) {
			return err
		}
		seen = news.GetSerial()
		if changed := p.take(news); changed || time.Since(told) >= bytesGap {
			told = time.Now()
			p.tell()
		}
		timer := time.NewTimer(newsGap)
		select {
		case <-timer.C:
		case <-p.over:
			timer.Stop()
			return nil
		}
	}
}

func (p *pull) wait(ctx context.Context, guest *agent.Client, id string, seen uint64) (*guestpullpb.PullProgress, error) {
	ctx, cancel := context.WithTimeout(ctx, newsLimit)
	defer cancel()
	return guest.WaitPull(ctx, id, seen)
}

// take checks what a guest says, which is hostile until then, and reports whether more than bytes have changed.
func (p *pull) take(news *guestpullpb.PullProgress) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return false
	}
	before := p.last
	if slices.Contains(pullPhases, news.GetPhase()) {
		p.last.Phase = news.GetPhase()
	}
	if d, err := digest.Parse(news.GetManifestDigest()); err == nil {
		p.last.Digest = d.String()
	}
	p.last.Layers = min(news.GetLayers(), maxLayers)
	p.last.LayersDone = min(news.GetLayersDone(), p.last.Layers)
	p.last.Total = max(news.GetBytes(), 0)
	p.last.Bytes = min(max(news.GetBytesFetched(), 0), p.last.Total)
	p.last.Rate = min(max(news.GetBytesPerSecond(), 0), maxRate)
	return p.last.Phase != before.Phase || p.last.LayersDone != before.LayersDone
}

// tell publishes the news, once there are any.
func (p *pull) tell() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended || p.last.Phase == "start" {
		return
	}
	p.last.Topic = event.PullProgress
	p.service.outbox.post(p.last)
}

// end publishes how the creation of the container, and so the pull, ended. report is the guest's, nil if it gave none.
func (p *pull) end(err error, report *guestpullpb.PullReport) {
	close(p.over)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = true
	p.last.Took, p.last.Rate = time.Since(p.started), 0
	if err != nil {
		p.last.Topic, p.last.Phase, p.last.Error = event.PullFailed, "failed", err.Error()
	} else {
		p.last.Topic, p.last.Phase = event.PullDone, "done"
		p.complete(report)
	}
	p.service.outbox.post(p.last)
}

// complete takes the figures of a pull that has succeeded from the guest's report, as far as they are any. The lock is held.
func (p *pull) complete(report *guestpullpb.PullReport) {
	if d, err := digest.Parse(report.GetManifestDigest()); err == nil {
		p.last.Digest = d.String()
	}
	if layers := report.GetLayers(); len(layers) > 0 && len(layers) <= maxLayers {
		p.last.Layers, p.last.Total = uint32(len(layers)), 0
		for _, layer := range layers {
			p.last.Total += min(max(layer.GetCompressedBytes(), 0), 1<<48)
		}
	}
	p.last.LayersDone, p.last.Bytes = p.last.Layers, p.last.Total
	p.last.Steps = map[string]time.Duration{}
	for _, phase := range report.GetPhases()[:min(len(report.GetPhases()), maxSteps)] {
		if stepPattern.MatchString(phase.GetName()) && phase.GetMicros() >= 0 {
			p.last.Steps[phase.GetName()] = time.Duration(phase.GetMicros()) * time.Microsecond
		}
	}
}

// reported is what the pod's report says of a container that is being made.
func (p *pull) reported() sandbox.ContainerReport {
	p.mu.Lock()
	defer p.mu.Unlock()
	return sandbox.ContainerReport{
		State: "creating", Image: p.last.Name, ManifestDigest: p.last.Digest,
		Progress: &sandbox.Progress{
			Phase: p.last.Phase, Layers: p.last.Layers, LayersDone: p.last.LayersDone, Bytes: p.last.Bytes, TotalBytes: p.last.Total,
			BytesPerSecond: p.last.Rate, Micros: time.Since(p.started).Microseconds(),
		},
	}
}
