package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

const (
	// partSize is what one request of a blob that is read ahead asks for. Parts lie in memory until their turn comes.
	partSize = 2 << 20
	// maxParts bounds the parts of all blobs of a client.
	maxParts = 8
	// aheadAfter is how much a single stream must have brought before it is judged.
	aheadAfter = 2 << 20
	// fastStream is the rate, in bytes per second, that one connection is worth being left alone for.
	fastStream = 100e6
)

// gauge judges a single stream. Many registries limit each connection; what is read ahead over several of them costs
// requests and memory, so it must be seen that the network is what is waited for, and that it is slow.
type gauge struct {
	begin  time.Time
	waited time.Duration
	bytes  int64
}

func (g *gauge) add(d time.Duration, n int) {
	g.waited += d
	g.bytes += int64(n)
}

// slow tells whether the stream is worth being helped.
func (g *gauge) slow() bool {
	if g.bytes < aheadAfter {
		return false
	}
	took := time.Since(g.begin)
	return g.waited > took/2 && float64(g.bytes) < fastStream*took.Seconds()
}

// buffers are shared by the blobs of a client.
type buffers struct {
	slots chan struct{}
	pool  sync.Pool
}

func newBuffers() *buffers {
	return &buffers{slots: make(chan struct{}, maxParts), pool: sync.Pool{New: func() any { return new([partSize]byte) }}}
}

// ahead reads a blob in parts, each with a request of its own, and gives them out in order. An error comes where the
// bytes before it end.
type ahead struct {
	ctx     context.Context
	cancel  context.CancelFunc
	workers sync.WaitGroup
	client  *Client
	ep      endpoint
	dgst    digest.Digest
	size    int64
	streams int

	next  int64 // first byte that nobody was asked for
	parts []*part
}

// part is written by its worker until done is closed.
type part struct {
	from, to int64
	buf      *[partSize]byte
	data     []byte
	err      error
	done     chan struct{}
}

func newAhead(ctx context.Context, c *Client, ep endpoint, dgst digest.Digest, offset, size int64) *ahead {
	ctx, cancel := context.WithCancel(ctx)
	return &ahead{ctx: ctx, cancel: cancel, client: c, ep: ep, dgst: dgst, size: size, streams: c.config.Streams, next: offset}
}

// ask keeps as many requests under way as there are streams and buffers; at least one.
func (a *ahead) ask() error {
	for len(a.parts) < a.streams && a.next < a.size {
		select {
		case a.client.buffers.slots <- struct{}{}:
		default:
			if len(a.parts) > 0 {
				return nil
			}
			// Other blobs hold all buffers, and give them back as they are read.
			select {
			case a.client.buffers.slots <- struct{}{}:
			case <-a.ctx.Done():
				return a.ctx.Err()
			}
		}
		p := &part{from: a.next, to: min(a.next+partSize, a.size), buf: a.client.buffers.pool.Get().(*[partSize]byte), done: make(chan struct{})}
		a.next = p.to
		a.parts = append(a.parts, p)
		a.workers.Go(func() { a.fetch(p) })
	}
	return nil
}

func (a *ahead) fetch(p *part) {
	defer close(p.done)
	t, err := a.client.open(a.ctx, a.ep, a.dgst, p.from, p.to, a.size)
	if err != nil {
		p.err = err
		return
	}
	defer t.Close()
	if t.whole {
		p.err = errors.New("server sends no ranges")
		return
	}
	n, err := io.ReadFull(t, p.buf[:p.to-p.from])
	p.data, p.err = p.buf[:n], err
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		p.err = fmt.Errorf("%w in bytes %d-%d", errTruncated, p.from, p.to-1)
	}
}

func (a *ahead) Read(b []byte) (int, error) {
	for {
		if err := a.ask(); err != nil {
			return 0, err
		}
		if len(a.parts) == 0 {
			return 0, io.EOF
		}
		p := a.parts[0]
		select {
		case <-p.done:
		case <-a.ctx.Done():
			return 0, a.ctx.Err()
		}
		if len(p.data) > 0 {
			n := copy(b, p.data)
			p.data = p.data[n:]
			return n, nil
		}
		if p.err != nil {
			return 0, p.err
		}
		a.parts = a.parts[1:]
		a.free(p)
	}
}

func (a *ahead) free(p *part) {
	a.client.buffers.pool.Put(p.buf)
	<-a.client.buffers.slots
}

// Close ends all requests and gives the buffers back.
func (a *ahead) Close() error {
	a.cancel()
	a.workers.Wait()
	for _, p := range a.parts {
		a.free(p)
	}
	a.parts = nil
	return nil
}
