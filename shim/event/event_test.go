package event

import (
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/transfer"
	"github.com/containerd/errdefs"
)

func TestRoundTrip(t *testing.T) {
	for name, want := range map[string]Event{
		"pull": {
			Topic: PullProgress, Sandbox: "s", Container: "c", Name: "r.example/app:1", Digest: "sha256:00", Phase: "fetch",
			Layers: 3, LayersDone: 1, Bytes: 5, Total: 9, Rate: 4, Steps: map[string]time.Duration{},
		},
		"pod": {
			Topic: PodStarted, Sandbox: "s", Name: "default/web", Phase: "started", Took: 2 * time.Second,
			Steps: map[string]time.Duration{"vm_boot": time.Second},
		},
		"failure": {Topic: PodFailed, Sandbox: "s", Phase: "failed", Error: "no kernel", Steps: map[string]time.Duration{}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Decode(want.Topic, want.Encode())
			if err != nil || !reflect.DeepEqual(*got, want) {
				t.Errorf("got %+v, %v; want %+v", got, err, want)
			}
		})
	}
}

func TestDecodeForeign(t *testing.T) {
	for name, p := range map[string]*transfer.Progress{
		"empty":      {},
		"no sandbox": {Event: "fetch"},
		"no phase":   {Desc: &types.Descriptor{Annotations: map[string]string{"sandbox": "s"}}},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := Decode(PullDone, p); !errors.Is(err, errdefs.ErrInvalidArgument) {
				t.Errorf("got %v", err)
			}
		})
	}
	got, err := Decode(PullDone, &transfer.Progress{Event: "done", Desc: &types.Descriptor{Annotations: map[string]string{
		"sandbox": "s", "layers": "-4", "micros": "many",
	}}})
	if err != nil || got.Layers != 0 || got.Took != 0 {
		t.Errorf("got %+v, %v; want numbers that are none to be 0", got, err)
	}
}

// TestLongError: an error may quote a guest's console, and an event has no room for that.
func TestLongError(t *testing.T) {
	e := Event{Sandbox: "s", Phase: "failed", Error: strings.Repeat("ä", maxError)}
	if got := e.Encode().GetDesc().GetAnnotations()["error"]; len(got) != maxError {
		t.Errorf("error has %d bytes, want %d", len(got), maxError)
	}
}
