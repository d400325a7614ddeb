package snapshotter

import (
	"fmt"
	"maps"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
)

// labelPrefix is ours alone. containerd lets no label through from an image's manifest to a snapshotter unless it is
// containerd.io/snapshot.ref or begins with containerd.io/snapshot/, so an image cannot set what begins with this.
const labelPrefix = "io.coffer/"

const (
	// LabelMode is ModeReference on the snapshots of that half. The others carry no label of ours, since a snapshot's
	// labels are otherwise the caller's alone.
	LabelMode = labelPrefix + "snapshot.mode"
	// LabelRecovered marks a record that was made again from its name after the database was lost.
	LabelRecovered = labelPrefix + "snapshot.recovered"
	// LabelHostRoot is the name of the folder that the mount of a container's snapshot binds.
	LabelHostRoot = labelPrefix + "snapshot.host-root"
)

// Mode says what a snapshot holds.
type Mode string

const (
	// ModeReference is an empty snapshot that stands for an image the guest pulls.
	ModeReference Mode = "reference-only"
	// ModeOverlay is a snapshot unpacked on the host.
	ModeOverlay Mode = "passthrough"
)

// UnmarshalText accepts the two modes and nothing else.
func (m *Mode) UnmarshalText(text []byte) error {
	switch v := Mode(text); v {
	case ModeReference, ModeOverlay:
		*m = v
		return nil
	}
	return fmt.Errorf("%q is neither %q nor %q: %w", text, ModeReference, ModeOverlay, errdefs.ErrInvalidArgument)
}

// modeOf reads the mode of a record.
func modeOf(info snapshots.Info) Mode {
	if Mode(info.Labels[LabelMode]) == ModeReference {
		return ModeReference
	}
	return ModeOverlay
}

// withMode gives the labels to store for a snapshot: those of the caller, and ours as the mode wants them.
//
// An overlay snapshot does not keep containerd.io/snapshot.ref. containerd looks for that label when a Prepare answers
// AlreadyExists, and would take an unpacked layer of another namespace for the reference-only one just made.
func withMode(given map[string]string, mode Mode) map[string]string {
	labels := make(map[string]string, len(given)+1)
	maps.Copy(labels, given)
	maps.DeleteFunc(labels, func(k, _ string) bool { return strings.HasPrefix(k, labelPrefix) })
	switch mode {
	case ModeReference:
		labels[LabelMode] = string(mode)
	case ModeOverlay:
		delete(labels, snapshots.LabelSnapshotRef)
	}
	return labels
}

// collect gathers what the caller asked for by options.
func collect(opts []snapshots.Opt) (snapshots.Info, error) {
	var info snapshots.Info
	for _, opt := range opts {
		if err := opt(&info); err != nil {
			return info, err
		}
	}
	return info, nil
}
