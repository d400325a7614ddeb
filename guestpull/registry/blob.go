package registry

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	// maxResumes is how often a transfer is taken up again without real progress in between.
	maxResumes = 4
	// realProgress is what a transfer must have moved for its failures to be forgotten.
	realProgress = 1 << 20
)

// Blob streams a layer or a configuration. The reader gives io.EOF only after desc.Size bytes that match desc.Digest; it
// never reads further than that, whatever the registry sends. A broken transfer is resumed where it broke.
func (c *Client) Blob(ctx context.Context, ref string, desc ocispec.Descriptor) (io.ReadCloser, error) {
	endpoints, err := c.config.endpoints(ref)
	if err != nil {
		return nil, err
	}
	if err := desc.Digest.Validate(); err != nil {
		return nil, fmt.Errorf("fetch blob: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	b := &blob{
		ctx: ctx, client: c, ref: ref, endpoints: endpoints,
		// Neither the type nor the URLs of the manifest are used: the first would choose the path to ask, the second
		// would send the guest to any address that the author of a manifest likes.
		desc: ocispec.Descriptor{MediaType: "application/octet-stream", Digest: desc.Digest, Size: desc.Size},
		hash: desc.Digest.Algorithm().Hash(),
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
	desc      ocispec.Descriptor
	hash      hash.Hash

	rc      io.ReadCloser
	current int // endpoint in use
	offset  int64
	resumes int
	mark    int64 // offset of the last failure
	err     error
}

func (b *blob) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	if b.offset == b.desc.Size {
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
	p = p[:min(int64(len(p)), b.desc.Size-b.offset)]
	for {
		n, err := b.rc.Read(p)
		if n > 0 {
			b.hash.Write(p[:n])
			b.offset += int64(n)
			// An error that came along is met again by the next read.
			return n, nil
		}
		switch {
		case err == nil:
			continue
		case errors.Is(err, io.EOF):
			err = fmt.Errorf("%w after %d of %d bytes", errTruncated, b.offset, b.desc.Size)
		case errors.Is(err, errTruncated):
			err = fmt.Errorf("%w, after %d of %d bytes", err, b.offset, b.desc.Size)
		}
		if err := b.resume(err); err != nil {
			return 0, err
		}
	}
}

// resume takes a broken transfer up again, or returns why it cannot.
func (b *blob) resume(cause error) error {
	ep := b.endpoints[b.current]
	if !errors.Is(cause, errTruncated) {
		return explain(cause, ep)
	}
	if b.offset-b.mark >= realProgress {
		b.resumes = 0
	}
	b.mark = b.offset
	b.resumes++
	if b.resumes > maxResumes {
		return fmt.Errorf("registry %s: %w, and again after %d attempts to resume: %w", ep.host, cause, maxResumes, errdefs.ErrUnavailable)
	}
	log.G(b.ctx).WithError(cause).WithFields(log.Fields{"digest": b.desc.Digest, "attempt": b.resumes}).Info("resuming transfer")
	b.rc.Close()
	if err := sleep(b.ctx, backoff(b.resumes)); err != nil {
		return err
	}
	return b.connect()
}

// connect opens the transfer at the current offset, at the first endpoint that answers. An endpoint that failed is not
// asked again.
func (b *blob) connect() error {
	var errs []error
	for ; b.current < len(b.endpoints); b.current++ {
		ep := b.endpoints[b.current]
		rc, err := b.client.open(b.ctx, ep, b.desc, b.offset)
		if err == nil {
			opened := &lazyOpen{rc: rc}
			if err = opened.prime(b.desc.Size - b.offset); err == nil {
				b.rc = opened
				return nil
			}
			opened.Close()
		}
		errs = append([]error{explain(err, ep)}, errs...)
		if b.ctx.Err() != nil {
			return errs[0]
		}
		if b.current < len(b.endpoints)-1 {
			log.G(b.ctx).WithError(err).WithField("registry", ep.host).Warn("mirror failed, trying the next")
		}
	}
	b.current = len(b.endpoints) - 1
	return errors.Join(errs...)
}

// finish gives the verdict on the whole.
func (b *blob) finish() error {
	if got := digest.NewDigest(b.desc.Digest.Algorithm(), b.hash); got != b.desc.Digest {
		return b.wrap(wrongBytes(b.endpoints[b.current].host, b.desc.Digest))
	}
	return io.EOF
}

func (b *blob) wrap(err error) error {
	return fmt.Errorf("fetch %s of %s: %w", b.desc.Digest, b.ref, err)
}

func (b *blob) Close() error {
	if b.rc == nil {
		return nil
	}
	return b.rc.Close()
}

// lazyOpen reads the first bytes of a transfer before they are asked for: containerd's client sends the request only at
// the first read, and whether it succeeds decides which endpoint is used.
type lazyOpen struct {
	rc   io.ReadCloser
	head []byte
	err  error
}

func (l *lazyOpen) prime(left int64) error {
	buf := make([]byte, min(left, 512))
	n, err := l.rc.Read(buf)
	l.head = buf[:n]
	if n > 0 || errors.Is(err, io.EOF) || errors.Is(err, errTruncated) {
		l.err = err
		return nil
	}
	return err
}

func (l *lazyOpen) Read(p []byte) (int, error) {
	if len(l.head) > 0 {
		n := copy(p, l.head)
		l.head = l.head[n:]
		return n, nil
	}
	if l.err != nil {
		return 0, l.err
	}
	return l.rc.Read(p)
}

func (l *lazyOpen) Close() error { return l.rc.Close() }
