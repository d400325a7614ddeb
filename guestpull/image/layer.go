package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/coffer-project/coffer/guestpull/decrypt"
	"github.com/coffer-project/coffer/guestpull/mediatype"
	"github.com/coffer-project/coffer/guestpull/registry"
	"github.com/coffer-project/coffer/guestpull/unpack"
)

// layers gets all layers, at most p.parallel at a time, and returns their directories, lowest first.
func (p *Puller) layers(ctx context.Context, owner string, found *resolved, rec *recorder) ([]string, error) {
	dirs := make([]string, len(found.layers))
	done := make([]chan struct{}, len(found.layers))
	for i := range done {
		done[i] = make(chan struct{})
	}
	slots := make(chan struct{}, p.parallel)
	group, ctx := errgroup.WithContext(ctx)
	for i, l := range found.layers {
		// Slots are taken from the lowest layer up, so that whatever a layer waits for has its slot before it.
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			// A layer's own error says more than that the others were given up for it.
			if err := group.Wait(); err != nil {
				return nil, err
			}
			return nil, ctx.Err()
		}
		group.Go(func() error {
			free := sync.OnceFunc(func() { <-slots })
			defer free()
			var filled time.Time
			dir, err := p.elsewhere(ctx, owner, l, func(ctx context.Context, dir string) error {
				deferred, err := p.fill(ctx, found.ref, l, dir, rec)
				free()
				if err != nil || deferred.Empty() {
					filled = time.Now()
					return err
				}
				if err := below(ctx, done[:i]); err != nil {
					return err
				}
				filled = time.Now()
				added, err := p.unpacker.Complete(ctx, dir, deferred, dirs[:i])
				l.unpacked += added
				return err
			})
			if err != nil {
				return fmt.Errorf("layer %d of %d (%s): %w", i+1, len(found.layers), l.desc.Digest, err)
			}
			if !filled.IsZero() {
				rec.add(phasePublish, time.Since(filled))
			}
			dirs[i] = dir
			rec.pull.layerDone()
			close(done[i])
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	return dirs, nil
}

// elsewhere gets a layer from the store. Where wrong bytes came from a mirror, others are asked, from the first byte on;
// where it did not fit beside layers that nobody uses, they make way for it.
func (p *Puller) elsewhere(ctx context.Context, owner string, l *layer, fill func(ctx context.Context, dir string) error) (string, error) {
	for {
		dir, err := p.store.Layer(ctx, owner, l.id, fill)
		if evicter, ok := p.store.(interface{ Evict() bool }); ok && errdefs.IsResourceExhausted(err) && evicter.Evict() {
			continue
		}
		if more, ok := errors.AsType[interface {
			error
			Again() bool
		}](err); !ok || !more.Again() {
			return dir, err
		}
		log.G(ctx).WithError(err).WithField("digest", l.desc.Digest).Warn("wrong bytes came from a mirror, asking the next")
	}
}

// below waits for the layers below.
func below(ctx context.Context, lower []chan struct{}) error {
	for _, ready := range lower {
		select {
		case <-ready:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// fill unpacks one layer to dir. When it returns nil, every proof of the layer was given: blob digest, HMAC, diff id.
func (p *Puller) fill(ctx context.Context, ref string, l *layer, dir string, rec *recorder) (*unpack.Deferred, error) {
	start := time.Now()
	opening := l.opening(rec)
	var sink registry.Sink
	if opening != nil {
		sink = opening
	}
	blob, err := p.registry.Blob(ctx, ref, l.desc, sink)
	rec.add(phaseFetch, time.Since(start))
	if err != nil {
		return nil, err
	}
	defer blob.Close()
	packed := &proof{}
	switch fetched := rec.pull.count(blob); {
	case opening != nil:
		packed.r = opening.Reader(rec.stage(phaseFetch, fetched, &opening.clock))
	case l.cipher != nil:
		fetched := rec.stage(phaseFetch, fetched, nil)
		packed.r = rec.stage(phaseDecrypt, l.cipher.Reader(fetched), fetched)
	default:
		packed.r = rec.stage(phaseFetch, fetched, nil)
	}
	how := unpack.Layer{Compression: l.kind.Compression, Digest: l.diffID.Algorithm()}
	diffID := l.known(opening)
	if diffID != nil {
		how.Digest = ""
	}
	res, err := p.unpacker.Unpack(ctx, dir, packed, how)
	if err != nil {
		return nil, blame(err, packed)
	}
	if !packed.given {
		return nil, fmt.Errorf("layer was not read to its end: %w", errdefs.ErrInternal)
	}
	rec.add(phaseDecompress, res.Decompress)
	rec.add(phaseApply, res.Apply)
	if diffID != nil {
		res.DiffID = diffID()
	}
	if res.DiffID != l.diffID {
		return nil, fmt.Errorf("layer unpacks to diff id %s, and the image configuration says %s: %w", res.DiffID, l.diffID, errdefs.ErrFailedPrecondition)
	}
	l.unpacked = res.Size
	return res.Deferred, nil
}

// opening is decrypt.Opening with a clock.
type opening struct {
	*decrypt.Opening
	clock clock
}

func (o *opening) Take(p []byte) {
	start := time.Now()
	o.Opening.Take(p)
	o.clock.add(time.Since(start))
}

// opening returns what deciphers the layer in the same pass in which its blob is hashed, where that is possible.
func (l *layer) opening(rec *recorder) *opening {
	if l.cipher == nil || l.desc.Digest.Algorithm() != digest.SHA256 {
		return nil
	}
	plain := l.kind.Compression == mediatype.None && l.diffID.Algorithm() == digest.SHA256
	return &opening{l.cipher.Opening(plain), clock{report: func(d time.Duration) { rec.add(phaseDecrypt, d) }}}
}

// known returns what tells the diff id when the layer was read to its end, without another pass; nil where that needs one.
func (l *layer) known(o *opening) func() digest.Digest {
	switch {
	case l.kind.Compression != mediatype.None || l.diffID.Algorithm() != digest.SHA256:
		return nil
	case o != nil:
		return o.Plain
	case l.cipher == nil && l.desc.Digest.Algorithm() == digest.SHA256:
		return func() digest.Digest { return l.desc.Digest } // the same bytes, which the registry has proven
	}
	return nil
}

// proof notes whether the verdict on a stream was heard: io.EOF itself, which the stages below give for the right bytes only.
type proof struct {
	r     io.Reader
	given bool
}

func (p *proof) Read(b []byte) (int, error) {
	n, err := p.r.Read(b)
	p.given = p.given || err == io.EOF
	return n, err
}

// blameLimit bounds what is read only to find out whose fault an error was, in bytes.
const blameLimit = 64 << 20

// blame looks for the cause of an error in the bytes of a layer. A decoder stumbles over wrong bytes long before the
// verdicts on them (blob digest, HMAC) are due, and says nothing that helps. So the rest is read, within a limit, to hear
// those verdicts: they say whether the registry sent, or somebody made, other bytes than the manifest promises.
func blame(err error, packed io.Reader) error {
	if errdefs.IsResourceExhausted(err) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	_, verdict := io.CopyN(io.Discard, packed, blameLimit)
	if verdict == nil || verdict == io.EOF || errors.Is(err, verdict) { //nolint:errorlint // a wrapped EOF is no verdict
		return err
	}
	return fmt.Errorf("%w (noticed as: %v)", verdict, err) //nolint:errorlint // the verdict alone gives the class
}
