// Package gunzip decompresses gzip streams (RFC 1952) about twice as fast as the libraries for Go: it looks codes up in one
// step for literals and lengths, takes several literals by one refill of its bits, and decodes into the memory that it
// hands out from. Layers packed with gzip spend most of their time here.
//
// The input is hostile. All memory is of fixed size, every index is checked by the language, and the tests hold verdicts
// and bytes against the standard library's.
package gunzip

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/containerd/errdefs"
)

// The classes of faults, for errors.Is. A stream that is cut is io.ErrUnexpectedEOF.
var (
	// ErrHeader is a stream, or what follows one, that is no gzip.
	ErrHeader = fmt.Errorf("gzip header is malformed: %w", errdefs.ErrInvalidArgument)
	// ErrCorrupt is data that no encoder makes.
	ErrCorrupt = fmt.Errorf("deflate stream is malformed: %w", errdefs.ErrInvalidArgument)
	// ErrChecksum is data with the wrong checksum or length.
	ErrChecksum = fmt.Errorf("gzip checksum does not match: %w", errdefs.ErrInvalidArgument)
)

const (
	// maxHeader bounds the header of a member in bytes.
	maxHeader = 128 << 10
	// maxText bounds the file's name and the comment in it, with their zero bytes. The RFC has no bound; the standard library
	// has this one, and no stream that it refuses should pass here.
	maxText = 512
)

const (
	flagHeaderCRC = 1 << (iota + 1)
	flagExtra
	flagName
	flagComment
)

// Reader decompresses one stream after the other. The zero value needs a Reset.
type Reader struct {
	z    inflater
	sum  uint32
	size uint32 // of the member, modulo 2^32
	err  error
}

// Reset begins a stream, whose first header is read. An empty stream is io.EOF.
func (r *Reader) Reset(src io.Reader) error {
	z := &r.z
	z.src, z.ip, z.ie, z.eof, z.bb, z.nb = src, 0, 0, false, 0, 0
	r.err = r.member()
	return r.err
}

// Read gives io.EOF after the last member.
func (r *Reader) Read(p []byte) (int, error) {
	z := &r.z
	for z.rp == z.op && r.err == nil {
		if err := z.fill(); errors.Is(err, errDone) {
			r.err = r.next()
		} else {
			r.err = err
		}
	}
	if z.rp == z.op {
		return 0, r.err
	}
	n := copy(p, z.out[z.rp:z.op])
	z.rp += n
	r.sum = crc32.Update(r.sum, crc32.IEEETable, p[:n])
	r.size += uint32(n)
	return n, nil
}

// next checks the end of a member and begins the one that follows.
func (r *Reader) next() error {
	if err := r.z.align(); err != nil {
		return err
	}
	var trailer [8]byte
	if err := r.full(trailer[:]); err != nil {
		return err
	}
	if binary.LittleEndian.Uint32(trailer[:]) != r.sum || binary.LittleEndian.Uint32(trailer[4:]) != r.size {
		return ErrChecksum
	}
	return r.member()
}

// full reads bytes of the input.
func (r *Reader) full(p []byte) error {
	for z := &r.z; len(p) > 0; {
		if z.ip == z.ie {
			if err := z.more(); err != nil {
				return err
			}
			if z.ip == z.ie {
				return io.ErrUnexpectedEOF
			}
		}
		n := copy(p, z.in[z.ip:z.ie])
		z.ip += n
		p = p[n:]
	}
	return nil
}

// member reads the header of a member; io.EOF when there is none.
func (r *Reader) member() error {
	r.z.restart()
	r.sum, r.size = 0, 0
	if err := r.z.more(); err != nil {
		return err
	}
	if r.z.ip == r.z.ie {
		return io.EOF
	}
	h := header{r: r}
	fixed := h.take(10)
	if h.err == nil && (fixed[0] != 0x1f || fixed[1] != 0x8b || fixed[2] != 8) {
		return ErrHeader
	}
	flags := byte(0)
	if h.err == nil {
		flags = fixed[3]
	}
	if flags&flagExtra != 0 {
		if n := h.take(2); h.err == nil {
			h.take(int(binary.LittleEndian.Uint16(n)))
		}
	}
	for _, text := range []byte{flagName, flagComment} {
		for n := 1; flags&text != 0 && h.err == nil; n++ {
			if b := h.take(1); h.err == nil && b[0] == 0 {
				break
			}
			if n == maxText {
				return ErrHeader
			}
		}
	}
	if want := uint16(crc32.ChecksumIEEE(h.raw)); flags&flagHeaderCRC != 0 {
		if got := h.take(2); h.err == nil && binary.LittleEndian.Uint16(got) != want {
			return ErrHeader
		}
	}
	return h.err
}

// header keeps what was read of a header, and the first error.
type header struct {
	r   *Reader
	raw []byte
	err error
}

func (h *header) take(n int) []byte {
	if h.err == nil && len(h.raw)+n > maxHeader {
		h.err = ErrHeader
	}
	if h.err != nil {
		return nil
	}
	start := len(h.raw)
	h.raw = append(h.raw, make([]byte, n)...)
	h.err = h.r.full(h.raw[start:])
	return h.raw[start:]
}
