package worker

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/guestpull/unpack"
	"github.com/coffer-project/coffer/guestpull/unpack/worker/jail"
)

// stages is how many of them there are at most side by side: decompression, and all that comes after.
const stages = 2

// Main is the worker's whole life; it returns the exit code. The process must have been started by a Client.
func Main() int {
	conn := socket(socketFD)
	res, noLandlock, err := work(conn)
	var raw []byte
	if err == nil {
		raw, err = encode(res, noLandlock)
	}
	if err != nil {
		err = send(conn, kindFailure, encodeFailure(err))
	} else {
		err = send(conn, kindResult, raw)
	}
	if err != nil {
		return 1 // nobody is there to hear why
	}
	return 0
}

// work takes a job, enters the jail and unpacks.
func work(conn socket) (_ *unpack.Result, noLandlock bool, err error) {
	kind, content, err := receive(conn)
	if err != nil {
		return nil, false, fmt.Errorf("receive job: %w", err)
	}
	var j job
	if kind != kindJob || strict(content, &j) != nil {
		return nil, false, errors.New("receive job: message is something else")
	}
	ring, err := unix.Mmap(ringFD, 0, blockSize*slots, unix.PROT_READ, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return nil, false, fmt.Errorf("map shared memory: %w", err)
	}
	if err := unix.Close(ringFD); err != nil {
		return nil, false, fmt.Errorf("map shared memory: %w", err)
	}
	err = jail.Enter(jail.Options{Dir: dirFD, Devices: j.Devices})
	if noLandlock = errors.Is(err, jail.ErrNoLandlock); err != nil && !noLandlock {
		return nil, false, fmt.Errorf("lock in the process that unpacks the layer: %w", err)
	}
	runtime.GOMAXPROCS(stages)
	s := newSource(conn, ring)
	opts := []unpack.Option{unpack.WithOwnRoot(), unpack.WithSpread(s.spare.Load), unpack.WithSpace(s.space)}
	if j.Devices {
		opts = append(opts, unpack.WithDevices())
	}
	res, err := unpack.New(j.Limits, opts...).Unpack(context.Background(), "/", s, unpack.Layer{Compression: j.Compression, Digest: j.Digest})
	return res, noLandlock, err
}

// socket is a descriptor that blocks: the worker has nothing else to do meanwhile, and so needs no poller.
type socket int

func (s socket) Read(p []byte) (int, error) {
	for {
		n, err := unix.Read(int(s), p)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, err
		case n == 0 && len(p) > 0:
			return 0, io.EOF
		default:
			return n, nil
		}
	}
}

func (s socket) Write(p []byte) (int, error) {
	for done := 0; ; {
		n, err := unix.Write(int(s), p[done:])
		if err != nil && !errors.Is(err, unix.EINTR) {
			return done, err
		}
		if done += max(n, 0); done == len(p) {
			return done, nil
		}
	}
}

// source is the packed stream as it comes through the ring. Whoever waits for a message of the parent reads it, so that with
// one stage at work nobody has to be woken up.
type source struct {
	conn  socket
	ring  []byte
	spare atomic.Bool

	mu      sync.Mutex
	heard   *sync.Cond // of mu: a message has come in
	reading bool       // somebody waits for the next message
	filled  []int      // lengths of the blocks that may be read, the oldest first
	ended   bool       // no block will follow those
	free    int64      // the answer to a question, unless negative

	// Of the goroutine that reads the stream.
	rest []byte
	next int // the block of the ring that follows
	held bool
}

// noAnswer is source.free as long as a question is open.
const noAnswer = -1

func newSource(conn socket, ring []byte) *source {
	s := &source{conn: conn, ring: ring}
	s.heard = sync.NewCond(&s.mu)
	return s
}

// await returns when there is what the caller waits for, with mu held. When the parent is gone, nothing is left to do.
func (s *source) await(there func() bool) {
	for !there() {
		if s.reading {
			s.heard.Wait()
			continue
		}
		s.reading = true
		s.mu.Unlock()
		kind, content, err := receive(s.conn)
		if err != nil {
			os.Exit(1)
		}
		s.mu.Lock()
		s.reading = false
		s.hear(kind, content)
		s.heard.Broadcast()
	}
}

func (s *source) hear(kind byte, content []byte) {
	switch kind {
	case kindBlock:
		s.spare.Store(content[4] == 1)
		s.filled = append(s.filled, int(binary.LittleEndian.Uint32(content)))
	case kindEnd:
		s.ended = true
	case kindSpace:
		// A negative answer is that there is no limit.
		s.free = int64(min(binary.LittleEndian.Uint64(content), math.MaxInt64))
	}
}

func (s *source) Read(p []byte) (int, error) {
	if len(s.rest) == 0 {
		if s.held {
			if err := send(s.conn, kindFree, nil); err != nil {
				return 0, err
			}
			s.held = false
		}
		s.mu.Lock()
		s.await(func() bool { return len(s.filled) > 0 || s.ended })
		if len(s.filled) == 0 {
			s.mu.Unlock()
			return 0, io.EOF
		}
		s.rest = s.ring[s.next*blockSize:][:s.filled[0]]
		s.filled = s.filled[1:]
		s.mu.Unlock()
		s.next, s.held = (s.next+1)%slots, true
	}
	n := copy(p, s.rest)
	s.rest = s.rest[n:]
	return n, nil
}

// space asks the parent how many bytes may still be written to the one directory that there is.
func (s *source) space(string) (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.free = noAnswer
	if err := send(s.conn, kindQuestion, nil); err != nil {
		return 0, err
	}
	s.await(func() bool { return s.free != noAnswer })
	return s.free, nil
}
