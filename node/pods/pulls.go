package pods

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/coffer-project/coffer/shim/sandbox"
)

// PhaseDone is the phase of a pull that has succeeded.
const PhaseDone = "done"

// Pull is the image pull of one container, under way or done. What guests say in it is for people.
type Pull struct {
	Pod            string `json:"pod"`
	Sandbox        string `json:"sandbox"`
	Container      string `json:"container"`
	Image          string `json:"image"`
	ManifestDigest string `json:"manifest_digest,omitempty"`
	// Phase is start, resolve, attest, fetch or done.
	Phase      string `json:"phase"`
	Layers     uint32 `json:"layers,omitempty"`
	LayersDone uint32 `json:"layers_done,omitempty"`
	// Bytes are those fetched of TotalBytes; layers that the guest had already are among the latter alone.
	Bytes      int64 `json:"bytes,omitempty"`
	TotalBytes int64 `json:"total_bytes,omitempty"`
	// BytesPerSecond is of late, and of pulls that are done over their whole time.
	BytesPerSecond int64 `json:"bytes_per_second,omitempty"`
	// Micros is the time since the guest was asked to make the container, or how long it took.
	Micros int64 `json:"micros,omitempty"`
}

// Done tells whether the pull is over.
func (p *Pull) Done() bool { return p.Phase == PhaseDone }

// Took is the pull's time.
func (p *Pull) Took() time.Duration { return time.Duration(p.Micros) * time.Microsecond }

// Pulls lists the image pulls of pods, those under way first. Containers that have pulled nothing are left out.
func Pulls(pods []Pod) []Pull {
	var all []Pull
	for i := range pods {
		p := &pods[i]
		if p.Report == nil {
			continue
		}
		for _, id := range slices.Sorted(maps.Keys(p.Report.Containers)) {
			pull, ok := pullOf(p.Report.Containers[id])
			if !ok {
				continue
			}
			pull.Pod, pull.Sandbox, pull.Container = p.Name(), p.ID, id
			all = append(all, pull)
		}
	}
	slices.SortStableFunc(all, func(a, b Pull) int { return cmp.Compare(rank(&a), rank(&b)) })
	return all
}

func rank(p *Pull) int {
	if p.Done() {
		return 1
	}
	return 0
}

// pullOf reads a container's pull from its report.
func pullOf(c sandbox.ContainerReport) (Pull, bool) {
	pull := Pull{Image: c.Image, ManifestDigest: c.ManifestDigest}
	if p := c.Progress; p != nil {
		pull.Phase, pull.Layers, pull.LayersDone = p.Phase, p.Layers, p.LayersDone
		pull.Bytes, pull.TotalBytes, pull.BytesPerSecond, pull.Micros = p.Bytes, p.TotalBytes, p.BytesPerSecond, p.Micros
		return pull, true
	}
	if len(c.Layers) == 0 {
		return Pull{}, false
	}
	pull.Phase, pull.Layers, pull.LayersDone = PhaseDone, uint32(len(c.Layers)), uint32(len(c.Layers))
	pull.Micros = max(c.CreateMicros-c.FilesMicros, 0)
	for _, layer := range c.Layers {
		pull.TotalBytes += layer.CompressedBytes
		if layer.UnpackedBytes > 0 { // 0: it was there
			pull.Bytes += layer.CompressedBytes
		}
	}
	if pull.Micros > 0 {
		pull.BytesPerSecond = int64(float64(pull.Bytes) / pull.Took().Seconds())
	}
	return pull, true
}
