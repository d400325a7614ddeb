package image_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/guestpull/image"
	rt "github.com/coffer-project/coffer/integration/registrytest"
	"github.com/coffer-project/coffer/integration/require"
)

// await waits for news until ok likes them.
func await(t *testing.T, tracker *image.Tracker, ok func(*image.Progress) bool) *image.Progress {
	t.Helper()
	var seen uint64
	for {
		news, err := tracker.Wait(t.Context(), "c", seen)
		if err != nil {
			t.Fatal(err)
		}
		if seen = news.Serial; ok(news) {
			return news
		}
	}
}

func TestProgress(t *testing.T) {
	require.Root(t)
	r := rt.Start(t)
	layers := plainLayers(t)
	ref := r.Put("app", "1", rt.NewImage(layers, nil, nil))
	r.Inject(rt.Fault{Kind: rt.LayerBlob, Digest: layers[1].Desc.Digest.String(), Action: rt.Stall})
	tracker := image.NewTracker()
	p, _ := newPuller(t, r, nil, image.WithTracker(tracker))
	ctx, cancel := context.WithCancel(t.Context())
	pulled := make(chan error, 1)
	go func() {
		_, err := p.Pull(ctx, image.Request{ContainerID: "c", Reference: ref})
		pulled <- err
	}()

	first := await(t, tracker, func(*image.Progress) bool { return true })
	if first.Reference != ref {
		t.Errorf("progress is of %q, want %s", first.Reference, ref)
	}
	fetching := await(t, tracker, func(p *image.Progress) bool { return p.LayersDone == 1 && p.BytesFetched > layers[0].Desc.Size })
	total := int64(0)
	for _, l := range layers {
		total += l.Desc.Size
	}
	if fetching.Stage != "fetch" || fetching.Layers != len(layers) || fetching.Bytes != total || fetching.BytesFetched >= total {
		t.Errorf("while a layer hangs: %+v", fetching)
	}
	if p := fetching.Proto(); p.GetManifestDigest() == "" || p.GetMicros() <= 0 {
		t.Errorf("the host is told %v", p)
	}
	if now, err := tracker.Latest("c"); err != nil || now.Took <= fetching.Took || now.LayersDone != 1 {
		t.Errorf("as it is: %+v, %v", now, err)
	}
	if _, err := tracker.Latest("nobody"); !errdefs.IsNotFound(err) {
		t.Errorf("progress of nothing: %v", err)
	}
	cancel()
	if err := <-pulled; err == nil {
		t.Fatal("a pull that hangs succeeded")
	}
	if last := await(t, tracker, func(p *image.Progress) bool { return p.Stage == "failed" }); last.LayersDone != 1 {
		t.Errorf("at the end: %+v", last)
	}

	r.Heal()
	if _, err := p.Pull(t.Context(), image.Request{ContainerID: "c", Reference: ref}); err != nil {
		t.Fatal(err)
	}
	if last := await(t, tracker, func(p *image.Progress) bool { return p.Stage == "done" }); last.LayersDone != len(layers) || last.BytesFetched != total || last.Rate <= 0 || last.Took <= 0 {
		t.Errorf("at the end: %+v", last)
	}
}

// TestProgressOfNothing: a host that asks for what there is not is answered in the end, and cannot ask without limit.
func TestProgressOfNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tracker := image.NewTracker()
		answers := make(chan error, 100)
		for range 100 {
			go func() {
				_, err := tracker.Wait(t.Context(), "nobody", 0)
				answers <- err
			}()
		}
		counts := map[error]int{}
		for range 100 {
			err := <-answers
			for _, class := range []error{errdefs.ErrNotFound, errdefs.ErrResourceExhausted} {
				if errors.Is(err, class) {
					counts[class]++
				}
			}
		}
		if counts[errdefs.ErrNotFound] != 64 || counts[errdefs.ErrResourceExhausted] != 36 {
			t.Errorf("answers: %v", counts)
		}
	})
}
