package metrics

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/log"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/coffer-project/coffer/snapshotter"
	"github.com/coffer-project/coffer/snapshotter/images"
)

var (
	descUp        = desc("snapshotter_up", "1 when the snapshotter answers.")
	descAnswer    = desc("snapshotter_answer_seconds", "Time that the snapshotter took to list its snapshots.")
	descSnapshots = desc("snapshots", "Snapshots by mode (reference-only: left to guests, passthrough: unpacked on this host) and kind.", "mode", "kind")
)

// labelSnapshotter tells the snapshotters of one node apart.
const labelSnapshotter = "snapshotter"

// Snapshotters collects the figures of a node's snapshotters, each over its own socket.
type Snapshotters []*source

// NewSnapshotters registers a collector for each snapshotter at a socket, by the name that its figures are to have. None
// need be there yet. The caller closes what it returns.
func NewSnapshotters(to prometheus.Registerer, addresses map[string]string) (_ Snapshotters, retErr error) {
	var all Snapshotters
	defer func() {
		if retErr != nil {
			retErr = errors.Join(retErr, all.Close())
		}
	}()
	for name, address := range addresses {
		conn, err := images.Dial(address)
		if err != nil {
			return nil, fmt.Errorf("dial snapshotter %s: %w", name, err)
		}
		s := &source{name: name, client: snapshotsapi.NewSnapshotsClient(conn), conn: conn}
		all = append(all, s)
		if err := prometheus.WrapRegistererWith(prometheus.Labels{labelSnapshotter: name}, to).Register(s); err != nil {
			return nil, fmt.Errorf("collect from snapshotter %s: %w", name, err)
		}
	}
	return all, nil
}

// Close drops the connections.
func (all Snapshotters) Close() error {
	var faults []error
	for _, s := range all {
		faults = append(faults, s.conn.Close())
	}
	return errors.Join(faults...)
}

// source collects the figures of one. It implements prometheus.Collector.
type source struct {
	name   string
	client snapshotsapi.SnapshotsClient
	conn   *grpc.ClientConn
}

// Describe implements prometheus.Collector.
func (*source) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descUp, descAnswer, descSnapshots} {
		to <- d
	}
}

// Collect implements prometheus.Collector.
func (s *source) Collect(to chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeLimit) // Prometheus gives a collector no context
	defer cancel()
	began := time.Now()
	counts, err := s.count(ctx)
	if err != nil {
		log.G(ctx).WithError(err).WithField(labelSnapshotter, s.name).Warn("snapshotter does not answer")
		to <- prometheus.MustNewConstMetric(descUp, prometheus.GaugeValue, 0)
		return
	}
	to <- prometheus.MustNewConstMetric(descUp, prometheus.GaugeValue, 1)
	to <- prometheus.MustNewConstMetric(descAnswer, prometheus.GaugeValue, time.Since(began).Seconds())
	for key, count := range counts {
		to <- prometheus.MustNewConstMetric(descSnapshots, prometheus.GaugeValue, float64(count), key.mode, key.kind)
	}
}

type snapshotKey struct{ mode, kind string }

func (s *source) count(ctx context.Context) (map[snapshotKey]int, error) {
	ctx = metadata.AppendToOutgoingContext(ctx, "containerd-namespace", "k8s.io")
	stream, err := s.client.List(ctx, &snapshotsapi.ListSnapshotsRequest{})
	if err != nil {
		return nil, err
	}
	counts := map[snapshotKey]int{}
	for {
		answer, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return counts, nil
		}
		if err != nil {
			return nil, err
		}
		for _, info := range answer.GetInfo() {
			mode := string(snapshotter.ModeOverlay)
			if info.GetLabels()[snapshotter.LabelMode] == string(snapshotter.ModeReference) {
				mode = string(snapshotter.ModeReference)
			}
			counts[snapshotKey{mode, strings.ToLower(info.GetKind().String())}]++
		}
	}
}
