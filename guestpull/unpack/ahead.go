package unpack

import (
	"context"
	"io"
	"sync"
)

const (
	// aheadBlock is how much one read of a stage takes; hash and cipher are cheap only in large blocks.
	aheadBlock = 256 << 10
	// aheadDepth is how many blocks a stage may be ahead of the next one.
	aheadDepth = 3
)

// blocks are used again by later layers.
var blocks = sync.Pool{New: func() any { return new([aheadBlock]byte) }}

// block is a piece of a stream and the error that followed it.
type block struct {
	buf  *[aheadBlock]byte
	data []byte
	err  error
}

// free gives the block's memory back.
func (b *block) free() {
	if b.buf != nil {
		blocks.Put(b.buf)
		b.buf, b.data = nil, nil
	}
}

// aheadReader hands blocks from one stage to the next. As long as there is no processor to spare, which spread tells, both
// run on the goroutine that reads: the bytes stay in one processor's cache, and nobody has to be woken up.
type aheadReader struct {
	ctx    context.Context // of the layer; the goroutine ends with it
	r      io.Reader
	spread func() bool
	group  sync.WaitGroup
	full   chan block // nil as long as there is no goroutine
	rest   block
}

// run reads on a goroutine of its own until there is no processor to spare. As many blocks as full takes, and one in the
// making, are ahead.
func (a *aheadReader) run() {
	defer close(a.full)
	for a.spread() {
		next := take(a.r)
		select {
		case a.full <- next:
		case <-a.ctx.Done():
			next.free()
			return
		}
		if next.err != nil {
			return
		}
	}
}

// take reads a block.
func take(r io.Reader) block {
	b := block{buf: blocks.Get().(*[aheadBlock]byte)}
	n, err := Fill(r, b.buf[:])
	b.data, b.err = b.buf[:n], err
	return b
}

// Fill reads until buf is full or an error comes, which is returned as it is.
func Fill(r io.Reader, buf []byte) (int, error) {
	n := 0
	for n < len(buf) {
		m, err := r.Read(buf[n:])
		n += m
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

func (a *aheadReader) Read(p []byte) (int, error) {
	for len(a.rest.data) == 0 {
		if a.rest.free(); a.rest.err != nil {
			return 0, a.rest.err
		}
		if a.full == nil && a.spread() {
			a.full = make(chan block, aheadDepth)
			a.group.Go(a.run)
		}
		if a.full == nil && len(p) >= aheadBlock/2 {
			// Nobody is ahead, and the caller's own block is as good as one of ours.
			n, err := a.r.Read(p)
			a.rest.err = err
			return n, err
		}
		if a.full == nil {
			a.rest = take(a.r)
			continue
		}
		next, ok := <-a.full
		if ok {
			a.rest = next
			continue
		}
		// The goroutine left: the layer was given up, or it is our turn again.
		a.full, a.rest.err = nil, a.ctx.Err()
	}
	n := copy(p, a.rest.data)
	a.rest.data = a.rest.data[n:]
	return n, nil
}

// close ends the goroutine, whose context or input must be at its end, and gives back what is left.
func (a *aheadReader) close() {
	a.group.Wait()
	a.rest.free()
	if a.full == nil {
		return
	}
	for b := range a.full {
		b.free()
	}
}
