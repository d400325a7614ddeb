package metrics

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	eventsapi "github.com/containerd/containerd/api/services/events/v1"
	"github.com/containerd/containerd/api/types/transfer"
	"github.com/containerd/log"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/coffer-project/coffer/shim/event"
	"github.com/coffer-project/coffer/snapshotter/images"
)

// reconnectPause is how long a subscription that broke rests: containerd is restarting.
const reconnectPause = 2 * time.Second

// Buckets of the histograms, in seconds: a pod starts in 1 to 5, emulated ones in more; images take up to minutes.
var (
	startBuckets = []float64{0.25, 0.5, 1, 1.5, 2, 3, 5, 7.5, 10, 20, 30, 60}
	pullBuckets  = []float64{0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200}
)

// Results of starts and pulls.
const (
	success = "success"
	failure = "failure"
)

// pullPhases are those that a guest's report may name; others are not counted.
var pullPhases = []string{"attest", "resolve", "verify", "fetch", "decrypt", "decompress", "apply", "publish"}

// Events counts what shims publish. It is safe for concurrent use.
type Events struct {
	starts, stops, pulls   *prometheus.CounterVec
	startSeconds           prometheus.Histogram
	startPhases            *prometheus.HistogramVec
	pullSeconds            prometheus.Histogram
	pullBytes              prometheus.Counter
	pullPhases             *prometheus.CounterVec
	subscribed, unreadable prometheus.Gauge
	pause                  time.Duration // between two subscriptions
}

// NewEvents registers the metrics.
func NewEvents(registry prometheus.Registerer) *Events {
	counters := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: namespace, Name: name, Help: help}, labels)
	}
	histogram := func(name, help string, buckets []float64) prometheus.HistogramOpts {
		return prometheus.HistogramOpts{Namespace: namespace, Name: name, Help: help, Buckets: buckets}
	}
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Namespace: namespace, Name: name, Help: help})
	}
	e := &Events{
		pause:        reconnectPause,
		starts:       counters("pod_starts_total", "Pods that started, or failed to, by result.", "result"),
		stops:        counters("pod_stops_total", "Pods that ended, by reason: requested or died.", "reason"),
		startSeconds: prometheus.NewHistogram(histogram("pod_start_seconds", "Time from the request for a pod until it takes containers.", startBuckets)),
		startPhases:  prometheus.NewHistogramVec(histogram("pod_start_phase_seconds", "Time of each step of a pod's start.", startBuckets), []string{"phase"}),
		pulls:        counters("pulls_total", "Image pulls in guests, by result.", "result"),
		pullSeconds:  prometheus.NewHistogram(histogram("pull_seconds", "Time of a container's creation in its guest, of which the image pull is nearly all.", pullBuckets)),
		pullBytes:    prometheus.NewCounter(prometheus.CounterOpts{Namespace: namespace, Name: "pull_bytes_total", Help: "Size of the images pulled in guests, as their registries hold them."}),
		pullPhases:   counters("pull_phase_seconds_total", "Time that guests report for each step of their pulls; layers are pulled side by side.", "phase"),
		subscribed:   gauge("events_subscribed", "1 while containerd delivers events: without them starts and pulls are not counted."),
		unreadable:   gauge("events_unreadable", "Events of Coffer's topics that could not be read since this program started."),
	}
	registry.MustRegister(e.starts, e.stops, e.startSeconds, e.startPhases, e.pulls, e.pullSeconds, e.pullBytes, e.pullPhases, e.subscribed, e.unreadable)
	// Labels with known values are there from the start, so that a rate over the first one is right.
	for _, result := range []string{success, failure} {
		e.starts.WithLabelValues(result)
		e.pulls.WithLabelValues(result)
	}
	for _, reason := range []string{"requested", "died"} {
		e.stops.WithLabelValues(reason)
	}
	return e
}

// Count takes one event into account.
func (e *Events) Count(ev *event.Event) {
	switch ev.Topic {
	case event.PodStarted:
		e.starts.WithLabelValues(success).Inc()
		e.startSeconds.Observe(ev.Took.Seconds())
		for phase, took := range ev.Steps {
			e.startPhases.WithLabelValues(phase).Observe(took.Seconds())
		}
	case event.PodFailed:
		e.starts.WithLabelValues(failure).Inc()
	case event.PodStopped:
		reason := "requested"
		if ev.Error != "" {
			reason = "died"
		}
		e.stops.WithLabelValues(reason).Inc()
	case event.PullDone:
		e.pulls.WithLabelValues(success).Inc()
		e.pullSeconds.Observe(ev.Took.Seconds())
		e.pullBytes.Add(float64(max(ev.Total, 0)))
		for _, phase := range pullPhases {
			if took, ok := ev.Steps[phase]; ok {
				e.pullPhases.WithLabelValues(phase).Add(max(took.Seconds(), 0))
			}
		}
	case event.PullFailed:
		e.pulls.WithLabelValues(failure).Inc()
	}
}

// Follow counts the events of the containerd at a socket until ctx ends. It connects again whenever the connection breaks.
func (e *Events) Follow(ctx context.Context, address string) error {
	conn, err := images.Dial(address)
	if err != nil {
		return fmt.Errorf("subscribe to containerd's events: %w", err)
	}
	defer conn.Close()
	for {
		err := e.subscribe(ctx, eventsapi.NewEventsClient(conn))
		e.subscribed.Set(0)
		if ctx.Err() != nil {
			return nil
		}
		log.G(ctx).WithError(err).WithField("address", address).Warn("containerd delivers no events, trying again")
		timer := time.NewTimer(e.pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil
		}
	}
}

func (e *Events) subscribe(ctx context.Context, client eventsapi.EventsClient) error {
	stream, err := client.Subscribe(ctx, &eventsapi.SubscribeRequest{Filters: []string{`topic~="^` + event.Prefix + `"`}})
	if err != nil {
		return err
	}
	// containerd sends nothing, not even a header, before the first event; that the stream is open must do.
	e.subscribed.Set(1)
	for {
		envelope, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return errors.New("containerd ended the subscription")
		}
		if err != nil {
			return err
		}
		progress := new(transfer.Progress)
		if err := envelope.GetEvent().UnmarshalTo(progress); err != nil {
			e.unreadable.Inc()
			continue
		}
		ev, err := event.Decode(envelope.GetTopic(), progress)
		if err != nil {
			e.unreadable.Inc()
			continue
		}
		e.Count(ev)
	}
}
