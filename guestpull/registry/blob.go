package registry

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	// maxResumes is how often a transfer is taken up again at one endpoint without real progress in between.
	maxResumes = 4
	// realProgress is what a transfer must have moved for its failures to be forgotten.
	realProgress = 1 << 20
)

// Sink takes the bytes of a blob as they come in, each once and in order, before whoever reads the blob gets them.
type Sink interface {
	// Take may change the bytes where they lie.
	Take(p []byte)
	// Sum appends the digest of the bytes as they came, by the algorithm of the blob's own.
	Sum(b []byte) []byte
}

// hashSink is the Sink of those who bring none.
type hashSink struct{ hash.Hash }

func (s hashSink) Take(p []byte) { s.Write(p) }

// Blob streams a layer or a configuration, through sink unless that is nil. The reader gives io.EOF only after desc.Size bytes that match desc.Digest; it
// never reads further than that, whatever the registry sends. A transfer that breaks, stalls or drips is resumed where it
// broke, at the same endpoint or at the next one; the digest runs on. An error that implements interface{ Again() bool }
// and says true came with the bytes of one place where another has not been asked: a second call asks that.
func (c *Client) Blob(ctx context.Context, ref string, desc ocispec.Descriptor, sink Sink) (io.ReadCloser, error) {
	all, err := c.endpoints(ctx, ref)
	if err != nil {
		return nil, err
	}
	if err := desc.Digest.Validate(); err != nil {
		return nil, fmt.Errorf("fetch blob: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	if desc.Size < 0 {
		return nil, fmt.Errorf("fetch blob %s: size %d: %w", desc.Digest, desc.Size, errdefs.ErrInvalidArgument)
	}
	// Neither the type nor the URLs of the manifest are used: the second would send the guest to any address that the
	// author of a manifest likes.
	b := &blob{ctx: ctx, client: c, ref: ref, dgst: desc.Digest, size: desc.Size, sink: sink}
	if sink == nil {
		b.sink = hashSink{desc.Digest.Algorithm().Hash()}
	}
	for _, ep := range c.honest(all, desc.Digest) {
		if !ep.noPull {
			b.endpoints = append(b.endpoints, ep)
		}
	}
	if len(b.endpoints) == 0 {
		return nil, b.wrap(nobodyMeant(ref))
	}
	if err := b.connect(); err != nil {
		return nil, b.wrap(err)
	}
	return b, nil
}

// blob is a running transfer.
type blob struct {
	ctx       context.Context // of the pull that reads it
	client    *Client
	ref       string
	endpoints []endpoint
	dgst      digest.Digest
	size      int64
	sink      Sink

	rc      io.ReadCloser
	current int // endpoint in use
	used    []string
	offset  int64
	resumes int
	mark    int64 // offset of the last failure
	errs    []error
	err     error

	single bool // reading ahead did not work out
	gauge  gauge
}

func (b *blob) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	if b.offset == b.size {
		b.err = b.finish()
		return 0, b.err
	}
	if len(p) == 0 {
		return 0, nil
	}
	n, err := b.read(p)
	if err != nil {
		b.err = b.wrap(err)
	}
	return n, b.err
}

// read returns bytes of the blob, resuming as often as it has to.
func (b *blob) read(p []byte) (int, error) {
	p = p[:min(int64(len(p)), b.size-b.offset)]
	for {
		start := time.Now()
		n, err := b.rc.Read(p)
		if n > 0 {
			b.sink.Take(p[:n])
			b.offset += int64(n)
			b.gauge.add(time.Since(start), n)
			b.hurry()
			// An error that came along is met again by the next read.
			return n, nil
		}
		if _, many := b.rc.(*ahead); many && err != nil && b.ctx.Err() == nil {
			// Whatever a registry has against several requests at a time, it may have nothing against one.
			b.single = true
			err = fmt.Errorf("%w while reading ahead: %v", errTruncated, err) //nolint:errorlint // a single stream will tell
		}
		switch {
		case err == nil:
			continue
		case errors.Is(err, io.EOF):
			err = fmt.Errorf("%w after %d of %d bytes", errTruncated, b.offset, b.size)
		case errors.Is(err, errTruncated):
			err = fmt.Errorf("%w, after %d of %d bytes", err, b.offset, b.size)
		}
		if err := b.resume(err); err != nil {
			return 0, err
		}
	}
}

// hurry goes on over several requests where one is slow and the registry knows ranges.
func (b *blob) hurry() {
	t, one := b.rc.(*transfer)
	if !one || !t.ranges || b.single || b.client.config.Streams < 2 || b.size-b.offset < 2*partSize || !b.gauge.slow() {
		return
	}
	// Little is lost: what is waited for has not been sent yet.
	t.Close()
	ep := b.endpoints[b.current]
	log.G(b.ctx).WithFields(log.Fields{"digest": b.dgst, "registry": ep.host, "streams": b.client.config.Streams}).Debug("reading ahead")
	b.rc = newAhead(b.ctx, b.client, ep, b.dgst, b.offset, b.size)
}

// resume takes a broken transfer up again, or returns why it cannot.
func (b *blob) resume(cause error) error {
	ep := b.endpoints[b.current]
	if b.ctx.Err() != nil {
		return explain(cause, ep)
	}
	if b.offset-b.mark >= realProgress {
		b.resumes = 0
	}
	b.mark = b.offset
	b.resumes++
	b.rc.Close()
	var final error
	switch limit := patience(cause); {
	case limit == 0:
		final = explain(cause, ep)
	case b.resumes > limit && limit < maxResumes:
		final = fmt.Errorf("%w (after %d attempts to resume)", explain(cause, ep), limit)
	case b.resumes > limit:
		final = fmt.Errorf("registry %s: %w, and again after %d attempts to resume: %w", ep.host, cause, maxResumes, errdefs.ErrUnavailable)
	}
	if final != nil {
		return b.next(final)
	}
	log.G(b.ctx).WithError(cause).WithFields(log.Fields{"digest": b.dgst, "registry": ep.host, "attempt": b.resumes}).Info("resuming transfer")
	if err := pause(b.ctx, backoff(b.resumes), ep.host, cause.Error()); err != nil {
		return err
	}
	return b.connect()
}

// patience is how often a fault of an endpoint is borne. Silence and dripping cost much more time than a broken connection.
func patience(cause error) int {
	var status *statusError
	switch {
	case errors.Is(cause, errTruncated):
		return maxResumes
	case errors.As(cause, &status) && errdefs.IsUnavailable(status.class):
		return silentAttempts - 1
	}
	return 0
}

// next leaves an endpoint for good and goes on at the one after it, from the byte where the transfer broke.
func (b *blob) next(cause error) error {
	if b.current == len(b.endpoints)-1 {
		return errors.Join(append([]error{cause}, b.errs...)...)
	}
	log.G(b.ctx).WithError(cause).WithFields(log.Fields{"digest": b.dgst, "registry": b.endpoints[b.current].host}).Warn("mirror failed, trying the next")
	b.errs = append([]error{cause}, b.errs...)
	b.current++
	b.resumes = 0
	return b.connect()
}

// connect opens the transfer at the current offset, at the first endpoint that answers.
func (b *blob) connect() error {
	ep := b.endpoints[b.current]
	t, err := b.client.open(b.ctx, ep, b.dgst, b.offset, b.size, b.size)
	if err == nil {
		b.rc, b.gauge = t, gauge{begin: time.Now()}
		if len(b.used) == 0 || b.used[len(b.used)-1] != ep.host {
			b.used = append(b.used, ep.host)
		}
		return nil
	}
	b.rc = io.NopCloser(errReader{err})
	if b.ctx.Err() != nil {
		return explain(err, ep)
	}
	if errors.Is(err, errTruncated) {
		return b.resume(err)
	}
	return b.next(explain(err, ep))
}

// errReader is a transfer that could not be opened.
type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }

// finish gives the verdict on the whole.
func (b *blob) finish() error {
	if digest.NewDigestFromBytes(b.dgst.Algorithm(), b.sink.Sum(nil)) == b.dgst {
		return io.EOF
	}
	hosts := b.used
	if len(hosts) > 1 {
		// One of them is to blame, and it is not known which: the last one, closest to the registry itself, may try alone.
		log.G(b.ctx).WithFields(log.Fields{"digest": b.dgst, "registries": hosts}).Warn("parts of a blob came from several registries and do not fit together")
		hosts = hosts[:len(hosts)-1]
	}
	return b.wrap(&lieError{error: wrongBytes(b.endpoints[b.current].host, b.dgst), again: b.client.distrust(b.dgst, hosts, b.endpoints)})
}

func (b *blob) wrap(err error) error {
	return fmt.Errorf("fetch %s of %s: %w", b.dgst, b.ref, err)
}

func (b *blob) Close() error {
	if b.rc == nil {
		return nil
	}
	return b.rc.Close()
}

// lieError is a blob of wrong bytes.
type lieError struct {
	error
	again bool
}

func (e *lieError) Unwrap() error { return e.error }

// Again reports whether another place may have the right bytes.
func (e *lieError) Again() bool { return e.again }

// maxLiars bounds the digests of which it is remembered who lied about them.
const maxLiars = 1024

// distrust remembers who sent wrong bytes and reports whether anybody else is left to ask.
func (c *Client) distrust(dgst digest.Digest, hosts []string, endpoints []endpoint) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.liars[dgst] == nil {
		if len(c.liars) >= maxLiars {
			clear(c.liars)
		}
		c.liars[dgst] = map[string]bool{}
	}
	for _, host := range hosts {
		c.liars[dgst][host] = true
	}
	for _, ep := range endpoints {
		if !c.liars[dgst][ep.host] {
			return true
		}
	}
	return false
}

// honest leaves out who lied about a digest; when that is everybody, all get another chance.
func (c *Client) honest(endpoints []endpoint, dgst digest.Digest) []endpoint {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.liars[dgst]) == 0 {
		return endpoints
	}
	var out []endpoint
	for _, ep := range endpoints {
		if !c.liars[dgst][ep.host] {
			out = append(out, ep)
		}
	}
	if len(out) == 0 {
		delete(c.liars, dgst)
		return endpoints
	}
	return out
}
