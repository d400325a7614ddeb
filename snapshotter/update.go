package snapshotter

import (
	"maps"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
)

const labelsPath = "labels"

// mergeLabels gives the change that a caller's update really makes: his labels, and ours as they are now. Paths that
// name a label of ours are dropped. The answer names at least one path, since none would mean all labels.
func mergeLabels(now, wanted snapshots.Info, paths []string) (snapshots.Info, []string) {
	labels := withMode(wanted.Labels, modeOf(now))
	if value, ok := now.Labels[LabelRecovered]; ok {
		labels[LabelRecovered] = value
	}
	wanted.Labels = labels
	if len(paths) == 0 {
		return wanted, []string{labelsPath}
	}
	paths = slices.DeleteFunc(slices.Clone(paths), func(p string) bool {
		label := strings.TrimPrefix(p, labelsPath+".")
		if modeOf(now) == ModeOverlay && label == snapshots.LabelSnapshotRef {
			return true
		}
		return strings.HasPrefix(label, labelPrefix)
	})
	if len(paths) == 0 {
		wanted.Labels = maps.Clone(now.Labels)
		return wanted, []string{labelsPath}
	}
	return wanted, paths
}
