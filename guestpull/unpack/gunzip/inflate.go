package gunzip

import (
	"encoding/binary"
	"errors"
	"io"
)

const (
	window = 32 << 10
	// outSize is what is made before the window is moved to the front again; a few bytes more may be written.
	outSize = window + 256<<10
	slack   = 258 + 16
	// inSize lets reads be of 128 KiB whatever is left of the one before.
	inSize  = 128<<10 + reserve + behind
	reserve = 64
	// behind is what stays before the next byte, for align to give back.
	behind = 8
	pad    = 16
	// maxTries bounds reads that give nothing.
	maxTries = 100
)

// errDone is the end of a deflate stream, which says nothing about the input's.
var errDone = errors.New("deflate stream is done")

// States between two calls of fill.
const (
	atBlock = iota
	inStored
	inHuffman
)

// inflater decodes one deflate stream (RFC 1951). Bits wait in bb, nb of them; those above are either right already or
// will be made so by the next refill, which reads the bytes that they came from again.
type inflater struct {
	src    io.Reader
	in     [inSize + pad]byte
	ip, ie int // next byte of in, and the end
	eof    bool
	bb     uint64
	nb     uint

	out    [outSize + slack]byte
	op, rp int // end of what was made, and of what was taken

	final  bool // the last block was begun
	state  int
	stored int // bytes left of a stored block
	lit    [litTable]uint32
	dist   [distTable]uint32
}

// restart prepares for the next stream of the same input. What was made must have been taken.
func (z *inflater) restart() {
	z.op, z.rp, z.final, z.state, z.stored = 0, 0, false, atBlock, 0
}

// more reads until enough is there for everything that is read at once, or the input has ended; zeros follow its end.
func (z *inflater) more() error {
	for tries := 0; z.ie-z.ip < reserve && !z.eof; tries++ {
		if tries == maxTries {
			return io.ErrNoProgress
		}
		kept := min(z.ip, behind)
		z.ie = copy(z.in[:], z.in[z.ip-kept:z.ie])
		z.ip = kept
		n, err := z.src.Read(z.in[z.ie:inSize])
		z.ie += n
		if err == io.EOF {
			z.eof = true
		} else if err != nil {
			return err
		}
	}
	if z.eof {
		clear(z.in[z.ie : z.ie+pad])
	}
	return nil
}

// refill makes at least 56 bits available, zeros behind the end.
func (z *inflater) refill() error {
	if z.ip+8 > z.ie {
		if err := z.more(); err != nil {
			return err
		}
		if z.ip >= z.ie+8 {
			return io.ErrUnexpectedEOF
		}
	}
	z.bb |= binary.LittleEndian.Uint64(z.in[z.ip:]) << z.nb
	z.ip += int((63 - z.nb) >> 3)
	z.nb |= 56
	return nil
}

// take removes bits; refill gave at least that many.
func (z *inflater) take(n uint) uint32 {
	v := uint32(z.bb) & (1<<n - 1)
	z.bb >>= n
	z.nb -= n
	return v
}

// order is that of the lengths of the code for lengths.
var order = [...]int{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}

// align drops the rest of a byte and gives whole bytes back to the input.
func (z *inflater) align() error {
	z.ip -= int(z.nb >> 3)
	z.bb, z.nb = 0, 0
	if z.ip > z.ie {
		return io.ErrUnexpectedEOF
	}
	return nil
}

// header reads the beginning of a block.
func (z *inflater) header() error {
	if err := z.refill(); err != nil {
		return err
	}
	z.final = z.take(1) == 1
	switch z.take(2) {
	case 0:
		z.take(z.nb & 7)
		if err := z.refill(); err != nil {
			return err
		}
		n, inverse := z.take(16), z.take(16)
		if n != inverse^0xffff {
			return ErrCorrupt
		}
		z.stored, z.state = int(n), inStored
		return z.align()
	case 1:
		z.fixed()
	case 2:
		return z.dynamic()
	default:
		return ErrCorrupt
	}
	return nil
}

// fixed prepares the codes of RFC 1951, 3.2.6.
func (z *inflater) fixed() {
	var lens [288]uint8
	for i := range lens {
		switch {
		case i < 144, i >= 280:
			lens[i] = 8
		case i < 256:
			lens[i] = 9
		default:
			lens[i] = 7
		}
	}
	build(z.lit[:], litBits, lens[:], litEntry)
	for i := range 32 {
		lens[i] = 5
	}
	build(z.dist[:], distBits, lens[:32], distEntry)
	z.state = inHuffman
}

// dynamic reads the codes of a block.
func (z *inflater) dynamic() error {
	nl, nd, nc := int(z.take(5))+257, int(z.take(5))+1, int(z.take(4))+4
	if nl > 286 || nd > 30 {
		return ErrCorrupt
	}
	var cl [19]uint8
	for i := range nc {
		if z.nb < 16 {
			if err := z.refill(); err != nil {
				return err
			}
		}
		cl[order[i]] = uint8(z.take(3))
	}
	var ct [128]uint32
	if !build(ct[:], 7, cl[:], func(s int) uint32 { return uint32(s) << 12 }) {
		return ErrCorrupt
	}
	var lens [286 + 30]uint8
	if err := z.lengths(&ct, lens[:nl+nd]); err != nil {
		return err
	}
	if lens[256] == 0 || !build(z.lit[:], litBits, lens[:nl], litEntry) || !build(z.dist[:], distBits, lens[nl:nl+nd], distEntry) {
		return ErrCorrupt
	}
	z.state = inHuffman
	return nil
}

// lengths reads the lengths of codes, which are packed by a code themselves.
func (z *inflater) lengths(ct *[128]uint32, lens []uint8) error {
	for i := 0; i < len(lens); {
		if err := z.refill(); err != nil {
			return err
		}
		e := ct[z.bb&127]
		if e&fBad != 0 {
			return ErrCorrupt
		}
		z.take(uint(e & 15))
		sym := e >> 12
		if sym < 16 {
			lens[i] = uint8(sym)
			i++
			continue
		}
		var v uint8
		var n int
		switch sym {
		case 16:
			if i == 0 {
				return ErrCorrupt
			}
			v, n = lens[i-1], 3+int(z.take(2))
		case 17:
			n = 3 + int(z.take(3))
		case 18:
			n = 11 + int(z.take(7))
		}
		if i+n > len(lens) {
			return ErrCorrupt
		}
		for ; n > 0; n-- {
			lens[i] = v
			i++
		}
	}
	return nil
}

// huffman decodes until the block ends or the output is full.
func (z *inflater) huffman() error {
	bb, nb, ip, op := z.bb, z.nb, z.ip, z.op
	out, in := &z.out, &z.in
	for op < outSize {
		if ip+8 > z.ie {
			z.ip = ip
			if err := z.more(); err != nil {
				return err
			}
			ip = z.ip
			if ip >= z.ie+8 {
				return io.ErrUnexpectedEOF
			}
		}
		bb |= binary.LittleEndian.Uint64(in[ip:ip+8]) << (nb & 63)
		ip += int((63 - nb) >> 3)
		nb |= 56
		e := z.lit[bb&(1<<litBits-1)]
		if e&fLit != 0 {
			// up to three short literals by one refill
			out[op] = byte(e >> 12)
			op++
			bb >>= e & 15
			nb -= uint(e & 15)
			if e = z.lit[bb&(1<<litBits-1)]; e&fLit != 0 {
				out[op] = byte(e >> 12)
				op++
				bb >>= e & 15
				nb -= uint(e & 15)
				if e = z.lit[bb&(1<<litBits-1)]; e&fLit != 0 {
					out[op] = byte(e >> 12)
					op++
					bb >>= e & 15
					nb -= uint(e & 15)
					continue
				}
			}
			if nb < 48 {
				continue
			}
		}
		if e&fSub != 0 {
			e = z.lit[(e>>12&0xffff)+uint32(bb>>litBits)&(1<<(e>>8&15)-1)]
			if e&fLit != 0 {
				out[op] = byte(e >> 12)
				op++
				bb >>= e & 15
				nb -= uint(e & 15)
				continue
			}
		}
		if e&fEnd != 0 {
			if e&fBad != 0 {
				return ErrCorrupt
			}
			bb >>= e & 15
			nb -= uint(e & 15)
			z.state = atBlock
			break
		}
		bb >>= e & 15
		extra := e >> 8 & 15
		length := int(e>>12&0xffff) + int(uint32(bb)&(1<<extra-1))
		bb >>= extra
		nb -= uint(e&15 + extra)
		d := z.dist[bb&(1<<distBits-1)]
		if d&fSub != 0 {
			d = z.dist[(d>>12&0xffff)+uint32(bb>>distBits)&(1<<(d>>8&15)-1)]
		}
		if d&fBad != 0 {
			return ErrCorrupt
		}
		bb >>= d & 15
		extra = d >> 8 & 15
		dist := int(d>>12&0xffff) + int(uint32(bb)&(1<<extra-1))
		bb >>= extra
		nb -= uint(d&15 + extra)
		if dist > op {
			return ErrCorrupt
		}
		src := op - dist
		end := op + length
		switch {
		case dist >= 8 && length <= 16:
			binary.LittleEndian.PutUint64(out[op:op+8], binary.LittleEndian.Uint64(out[src:src+8]))
			binary.LittleEndian.PutUint64(out[op+8:op+16], binary.LittleEndian.Uint64(out[src+8:src+16]))
		case dist >= length:
			copy(out[op:end], out[src:src+length])
		default:
			for n := op; n < end; {
				n += copy(out[n:end], out[src:n])
			}
		}
		op = end
	}
	z.bb, z.nb, z.ip, z.op = bb, nb, ip, op
	return nil
}

// fill makes some output, possibly none; errDone after the last block.
func (z *inflater) fill() error {
	if z.op >= outSize {
		copy(z.out[:window], z.out[z.op-window:z.op])
		z.op, z.rp = window, window
	}
	switch z.state {
	case atBlock:
		if z.final {
			return errDone
		}
		return z.header()
	case inStored:
		if z.ip >= z.ie {
			if err := z.more(); err != nil {
				return err
			}
		}
		n := min(z.stored, z.ie-z.ip, outSize-z.op)
		if n == 0 && z.stored > 0 {
			return io.ErrUnexpectedEOF
		}
		copy(z.out[z.op:], z.in[z.ip:z.ip+n])
		z.ip, z.op, z.stored = z.ip+n, z.op+n, z.stored-n
		if z.stored == 0 {
			z.state = atBlock
		}
	case inHuffman:
		return z.huffman()
	}
	return nil
}
