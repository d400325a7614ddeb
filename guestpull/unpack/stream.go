package unpack

import (
	"context"
	_ "crypto/sha256" // digests that images may use
	_ "crypto/sha512"
	"fmt"
	"io"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/coffer-project/coffer/guestpull/mediatype"
)

// Layer says how a layer is packed, and how its tar stream is to be digested.
type Layer struct {
	Compression mediatype.Compression
	Digest      digest.Algorithm // empty: not at all, because the caller knows how
}

// Result is what a layer turned out to be.
type Result struct {
	// Size is the sum of file sizes in bytes.
	Size int64
	// DiffID is the digest of the tar stream, if one was asked for.
	DiffID digest.Digest
	// Deferred is what needs the layers below, see Complete.
	Deferred *Deferred
	// Decompress and Apply are the times that these stages were at work themselves.
	Decompress, Apply time.Duration
}

// Unpack decompresses the packed stream of a layer, digests it and applies it to dir, which must exist and be empty. It
// reads r to its end. An error of r is in the chain of what it returns; ErrInvalidArgument and ErrOutOfRange speak of the
// stream, ErrResourceExhausted of the store.
func (u *Unpacker) Unpack(ctx context.Context, dir string, r io.Reader, l Layer) (_ *Result, err error) {
	ctx, cancel := context.WithCancel(ctx)
	if l.Digest != "" && !l.Digest.Available() {
		cancel()
		return nil, fmt.Errorf("digest layer by %q: %w", l.Digest, digest.ErrDigestUnsupported)
	}
	packed := &stopwatch{r: r}
	tar, err := u.Decompress(packed, l.Compression)
	if err != nil {
		cancel()
		return nil, err
	}
	header := packed.total // the decoder has read it already
	unpacked, sum := &stopwatch{r: tar}, func() digest.Digest { return "" }
	if l.Digest != "" {
		hash := l.Digest.Hash()
		unpacked.r, sum = io.TeeReader(tar, hash), func() digest.Digest { return digest.NewDigest(l.Digest, hash) }
	}
	ahead := &aheadReader{ctx: ctx, r: unpacked, spread: u.spread}
	// Nothing is closed under the hands of the stage that reads ahead, and it does not outlive the layer.
	defer func() {
		cancel()
		ahead.close()
		tar.Close()
	}()
	read := &stopwatch{r: ahead}
	start := time.Now()
	res := &Result{}
	if res.Size, res.Deferred, err = u.Apply(ctx, dir, read); err != nil {
		return nil, err
	}
	res.Apply = max(time.Since(start)-read.total, 0)
	res.Decompress = max(unpacked.total-(packed.total-header), 0)
	// The decoder may be content before its input has ended, and the verdicts on the input come with its end.
	if err := atEnd(packed); err != nil {
		return nil, err
	}
	res.DiffID = sum()
	return res, nil
}

// stopwatch adds up the time that is spent in reads of r.
type stopwatch struct {
	r     io.Reader
	total time.Duration
}

func (s *stopwatch) Read(p []byte) (int, error) {
	start := time.Now()
	n, err := s.r.Read(p)
	s.total += time.Since(start)
	return n, err
}

// errUnproven is what an attempt to publish a layer without its end of file would give.
var errUnproven = fmt.Errorf("layer has bytes after the end of its packed stream: %w", errdefs.ErrInvalidArgument)

// atEnd wants io.EOF and nothing before it.
func atEnd(r io.Reader) error {
	var b [1]byte
	for {
		n, err := r.Read(b[:])
		switch {
		case n > 0:
			return errUnproven
		case err == io.EOF: // a wrapped one is no verdict
			return nil
		case err != nil:
			return err
		}
	}
}
