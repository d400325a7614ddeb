// Package event is what Coffer's shims publish through containerd beside the events of tasks: how pods start and end and
// how far image pulls in guests are. `ctr events` shows them.
//
// Each is sent as a containerd.types.transfer.Progress, the type of containerd's own transfer service: a program shows
// only types that it links, and that one every client of containerd links. What a guest says in it is for people and
// metrics; nothing may trust it for a decision.
package event

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/transfer"
	"github.com/containerd/errdefs"
)

// Topics, all under Prefix.
const (
	Prefix = "/coffer/"

	PodStarted = Prefix + "pod/start"
	PodFailed  = Prefix + "pod/fail"
	PodStopped = Prefix + "pod/stop"

	PullStarted  = Prefix + "pull/start"
	PullProgress = Prefix + "pull/progress"
	PullDone     = Prefix + "pull/done"
	PullFailed   = Prefix + "pull/fail"
)

// Keys of the annotations; durations are in microseconds, as everywhere in Coffer's reports.
const (
	keySandbox    = "sandbox"
	keyContainer  = "container"
	keyLayers     = "layers"
	keyLayersDone = "layers_done"
	keyMicros     = "micros"
	keyRate       = "bytes_per_second"
	keyError      = "error"
	keyStep       = "step." // and a step's name
)

// maxError bounds the error of an event in bytes: the whole one is in the answer to the request that failed.
const maxError = 512

// Event is one of them. Fields that do not apply are empty.
type Event struct {
	Topic              string
	Sandbox, Container string
	// Name is the image's reference, or the pod's as namespace/name.
	Name string
	// Digest is the image's manifest, where it is known.
	Digest string
	// Phase is a step of a pull: start, resolve, attest, fetch, done or failed. For pods: started, failed or stopped.
	Phase              string
	Layers, LayersDone uint32
	// Bytes are those fetched of Total, as they are in the registry. 0 for what is not known.
	Bytes, Total int64
	// Rate is how many bytes the guest fetches in a second, of late; 0 at the end.
	Rate int64
	// Took is how long the whole took, in an event that ends it; Steps are its parts by name.
	Took  time.Duration
	Steps map[string]time.Duration
	Error string
}

// Encode gives the event the form in which it is published under its topic.
func (e *Event) Encode() *transfer.Progress {
	notes := map[string]string{}
	note := func(key, value string) {
		if value != "" && value != "0" {
			notes[key] = value
		}
	}
	note(keySandbox, e.Sandbox)
	note(keyContainer, e.Container)
	note(keyLayers, strconv.FormatUint(uint64(e.Layers), 10))
	note(keyLayersDone, strconv.FormatUint(uint64(e.LayersDone), 10))
	note(keyMicros, strconv.FormatInt(e.Took.Microseconds(), 10))
	note(keyRate, strconv.FormatInt(e.Rate, 10))
	note(keyError, strings.ToValidUTF8(e.Error[:min(len(e.Error), maxError)], ""))
	for name, took := range e.Steps {
		notes[keyStep+name] = strconv.FormatInt(took.Microseconds(), 10)
	}
	return &transfer.Progress{
		Event: e.Phase, Name: e.Name, Progress: e.Bytes, Total: e.Total,
		Desc: &types.Descriptor{Digest: e.Digest, Annotations: notes},
	}
}

// Decode reads a published event. It fails with errdefs.ErrInvalidArgument for one of another form.
func Decode(topic string, p *transfer.Progress) (*Event, error) {
	notes := p.GetDesc().GetAnnotations()
	e := &Event{
		Topic: topic, Phase: p.GetEvent(), Name: p.GetName(), Bytes: p.GetProgress(), Total: p.GetTotal(), Digest: p.GetDesc().GetDigest(),
		Sandbox: notes[keySandbox], Container: notes[keyContainer], Error: notes[keyError], Steps: map[string]time.Duration{},
	}
	number := func(key string) int64 {
		n, err := strconv.ParseInt(notes[key], 10, 64)
		if notes[key] == "" || err != nil {
			return 0
		}
		return max(n, 0)
	}
	e.Layers, e.LayersDone = uint32(number(keyLayers)), uint32(number(keyLayersDone))
	e.Rate = number(keyRate)
	e.Took = time.Duration(number(keyMicros)) * time.Microsecond
	for key := range notes {
		if name, ok := strings.CutPrefix(key, keyStep); ok {
			e.Steps[name] = time.Duration(number(key)) * time.Microsecond
		}
	}
	if e.Sandbox == "" || e.Phase == "" {
		return nil, fmt.Errorf("event %s names no sandbox or no phase: %w", topic, errdefs.ErrInvalidArgument)
	}
	return e, nil
}
