package image

import (
	"context"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// aheadBlock is how much one read of a stage takes; hash and cipher are cheap only in large blocks.
	aheadBlock = 256 << 10
	// aheadDepth is how many blocks a stage may be ahead of the next one. A layer has two such places, hence 2 MiB.
	aheadDepth = 3
)

// crew counts the layers that are worked on. As long as they keep all processors busy, each is best done by one goroutine
// from end to end: its bytes stay in one processor's cache, and nobody has to be woken up. When fewer are left, the stages
// of each are spread over the processors.
type crew struct {
	processors int32
	layers     atomic.Int32
}

func (c *crew) busy() bool { return c.layers.Load() >= c.processors }

// pipeline runs the stages of one layer.
type pipeline struct {
	crew    *crew
	group   sync.WaitGroup
	readers []*aheadReader
}

func (c *crew) pipeline() *pipeline {
	c.layers.Add(1)
	return &pipeline{crew: c}
}

// end returns when all stages have ended. Their context must be at its end, or their input.
func (p *pipeline) end() {
	p.group.Wait()
	p.crew.layers.Add(-1)
	for _, a := range p.readers {
		a.close()
	}
}

// ahead reads r, on a goroutine of its own once the crew is not busy any more, until the end of r, an error, or the end of
// ctx.
func (p *pipeline) ahead(ctx context.Context, r io.Reader) *aheadReader {
	a := &aheadReader{ctx: ctx, pipeline: p, r: r}
	p.readers = append(p.readers, a)
	return a
}

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

// aheadReader hands blocks from one stage to the next.
type aheadReader struct {
	ctx      context.Context // of the layer; the goroutine ends with it
	pipeline *pipeline
	r        io.Reader
	full     chan block // nil as long as there is no goroutine
	rest     block
}

// run reads on a goroutine of its own until the crew is busy again. As many blocks as full takes, and one in the making,
// are ahead.
func (a *aheadReader) run() {
	defer close(a.full)
	for !a.pipeline.crew.busy() {
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
	n, err := fill(r, b.buf[:])
	b.data, b.err = b.buf[:n], err
	return b
}

// fill reads until buf is full or an error comes, which is returned as it is.
func fill(r io.Reader, buf []byte) (int, error) {
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
		if a.full == nil && !a.pipeline.crew.busy() {
			a.full = make(chan block, aheadDepth)
			a.pipeline.group.Go(a.run)
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

// close gives back what is left; nobody may read any more, and the goroutine must have ended.
func (a *aheadReader) close() {
	a.rest.free()
	if a.full == nil {
		return
	}
	for b := range a.full {
		b.free()
	}
}

// clock counts the time that is spent in reads of r.
type clock struct {
	r     io.Reader
	total time.Duration
	// report is told about each read; nil for clocks whose owner asks.
	report func(time.Duration)
	// inner is what r reads from; its time is not r's.
	inner *clock
}

func (c *clock) Read(p []byte) (int, error) {
	var before time.Duration
	if c.inner != nil {
		before = c.inner.total
	}
	start := time.Now()
	n, err := c.r.Read(p)
	d := time.Since(start)
	c.total += d
	if c.report != nil {
		if c.inner != nil {
			d -= c.inner.total - before
		}
		c.report(d)
	}
	return n, err
}

func (c *clock) spent() time.Duration { return c.total }
