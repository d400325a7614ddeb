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

// Snapshots collects the snapshotter's figures over its own socket. It implements prometheus.Collector.
type Snapshots struct {
	client snapshotsapi.SnapshotsClient
	conn   *grpc.ClientConn
}

// NewSnapshots returns the collector for the snapshotter at a socket, which need not be there yet.
func NewSnapshots(address string) (*Snapshots, error) {
	conn, err := images.Dial(address)
	if err != nil {
		return nil, fmt.Errorf("dial snapshotter: %w", err)
	}
	return &Snapshots{client: snapshotsapi.NewSnapshotsClient(conn), conn: conn}, nil
}

// Close drops the connection.
func (s *Snapshots) Close() error { return s.conn.Close() }

// Describe implements prometheus.Collector.
func (*Snapshots) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descUp, descAnswer, descSnapshots} {
		to <- d
	}
}

// Collect implements prometheus.Collector.
func (s *Snapshots) Collect(to chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeLimit) // Prometheus gives a collector no context
	defer cancel()
	began := time.Now()
	counts, err := s.count(ctx)
	if err != nil {
		log.G(ctx).WithError(err).Warn("snapshotter does not answer")
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

func (s *Snapshots) count(ctx context.Context) (map[snapshotKey]int, error) {
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
