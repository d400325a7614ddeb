package image

import (
	"context"
	"io"
	"sync"
	"time"
)

const (
	// aheadBlock is how much one read of a stage takes; hash and cipher are cheap only in large blocks.
	aheadBlock = 256 << 10
	// aheadDepth is how many blocks a stage may be ahead of the next one. A layer has two such places, hence 2 MiB.
	aheadDepth = 3
)

// pipeline runs the stages of one layer on goroutines of their own.
type pipeline struct {
	group sync.WaitGroup
}

// wait returns when all stages have ended. Their context must be at its end, or their input.
func (p *pipeline) wait() { p.group.Wait() }

// ahead reads r on a goroutine of its own until its end, an error, or the end of ctx.
func (p *pipeline) ahead(ctx context.Context, r io.Reader) io.Reader {
	a := &aheadReader{ctx: ctx, full: make(chan block, aheadDepth), empty: make(chan []byte, aheadDepth+2)}
	p.group.Go(func() { a.run(r) })
	return a
}

// block is a piece of a stream and the error that followed it.
type block struct {
	data []byte
	err  error
}

// aheadReader hands blocks from one stage to the next; empty carries them back for use again.
type aheadReader struct {
	ctx   context.Context // of the layer; the goroutine ends with it
	full  chan block
	empty chan []byte

	made int // blocks in circulation; only run touches it
	rest block
	buf  []byte
}

func (a *aheadReader) run(r io.Reader) {
	defer close(a.full)
	for {
		buf, ok := a.take()
		if !ok {
			return
		}
		n, err := fill(r, buf)
		select {
		case a.full <- block{buf[:n], err}:
		case <-a.ctx.Done():
			return
		}
		if err != nil {
			return
		}
	}
}

// take returns a block to read into.
func (a *aheadReader) take() ([]byte, bool) {
	select {
	case buf := <-a.empty:
		return buf, true
	default:
	}
	if a.made < aheadDepth+1 {
		a.made++
		return make([]byte, aheadBlock), true
	}
	select {
	case buf := <-a.empty:
		return buf, true
	case <-a.ctx.Done():
		return nil, false
	}
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
		if a.rest.err != nil {
			return 0, a.rest.err
		}
		if a.buf != nil {
			a.empty <- a.buf[:aheadBlock]
			a.buf = nil
		}
		next, ok := <-a.full
		if !ok {
			// The goroutine left because the layer was given up.
			a.rest.err = a.ctx.Err()
			return 0, a.rest.err
		}
		a.rest, a.buf = next, next.data[:0]
	}
	n := copy(p, a.rest.data)
	a.rest.data = a.rest.data[n:]
	return n, nil
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
