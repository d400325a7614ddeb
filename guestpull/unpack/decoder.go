package unpack

import (
	"bufio"
	"fmt"
	"io"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/zstd"

	"github.com/coffer-project/coffer/guestpull/mediatype"
	"github.com/coffer-project/coffer/guestpull/unpack/gunzip"
)

// decoder is a running decompressor. Close gives it back for use by another layer.
type decoder struct {
	io.Reader
	compression mediatype.Compression
	// buf is what it reads from: decoders ask for a few bytes at a time, and the stages below are cheap only in large reads.
	buf   *bufio.Reader
	reset func(io.Reader) error
	pool  *sync.Pool
}

// decoder returns one that waits for its input, used or new.
func (u *Unpacker) decoder(c mediatype.Compression) (*decoder, error) {
	d := &decoder{compression: c}
	switch c {
	case mediatype.Gzip:
		d.pool = &u.gzips
	case mediatype.Zstd:
		d.pool = &u.zstds
	default:
		return nil, fmt.Errorf("unpack compression %s: %w", c, errdefs.ErrNotImplemented)
	}
	if used, ok := d.pool.Get().(*decoder); ok {
		return used, nil
	}
	d.buf = bufio.NewReaderSize(nil, bufferSize)
	if c == mediatype.Gzip {
		zr := new(gunzip.Reader)
		d.Reader, d.reset = zr, zr.Reset
		return d, nil
	}
	zr, err := zstd.NewReader(nil,
		// One block at a time: the layers of an image are what runs in parallel.
		zstd.WithDecoderConcurrency(1),
		zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxWindow(u.limits.Window),
		// The layer's diff id says more.
		zstd.IgnoreChecksum(true))
	if err != nil {
		return nil, fmt.Errorf("prepare zstd: %w", err)
	}
	d.Reader, d.reset = zr, zr.Reset
	return d, nil
}

func (d *decoder) Read(p []byte) (int, error) {
	n, err := d.Reader.Read(p)
	if err == nil || err == io.EOF {
		return n, err
	}
	return n, fmt.Errorf("decompress %s: %w", d.compression, classify(err))
}

// Close may be called once; nobody may read afterwards.
func (d *decoder) Close() error {
	d.buf.Reset(nil)
	d.pool.Put(d)
	return nil
}
