package worker

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/guestpull/unpack"
	"github.com/coffer-project/coffer/guestpull/unpack/worker/jail"
)

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
	ring, err := unix.Mmap(ringFD, 0, blockSize*slots, unix.PROT_READ, unix.MAP_SHARED)
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
	s := &source{conn: conn, ring: ring, blocks: make(chan block, slots), spaces: make(chan int64, 1)}
	go s.listen()
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

// block is a filled block of the ring, or the end of the stream.
type block struct {
	data []byte
	end  bool
}

// source is the packed stream as it comes through the ring.
type source struct {
	conn   socket
	ring   []byte
	blocks chan block
	spaces chan int64
	spare  atomic.Bool

	rest []byte
	held bool // a block is being read
	end  bool
}

// listen takes the parent's messages. When the parent is gone, nothing is left to do.
func (s *source) listen() {
	for next := 0; ; {
		kind, content, err := receive(s.conn)
		if err != nil {
			os.Exit(1)
		}
		switch kind {
		case kindBlock:
			s.spare.Store(content[4] == 1)
			s.blocks <- block{data: s.ring[next*blockSize:][:binary.LittleEndian.Uint32(content)]}
			next = (next + 1) % slots
		case kindEnd:
			s.blocks <- block{end: true}
		case kindSpace:
			s.spaces <- int64(binary.LittleEndian.Uint64(content))
		}
	}
}

func (s *source) Read(p []byte) (int, error) {
	for len(s.rest) == 0 {
		if s.end {
			return 0, io.EOF
		}
		if s.held {
			if err := send(s.conn, kindFree, nil); err != nil {
				return 0, err
			}
		}
		b := <-s.blocks
		s.rest, s.held, s.end = b.data, !b.end, b.end
	}
	n := copy(p, s.rest)
	s.rest = s.rest[n:]
	return n, nil
}

// space asks the parent how many bytes may still be written to the one directory that there is.
func (s *source) space(string) (int64, error) {
	if err := send(s.conn, kindQuestion, nil); err != nil {
		return 0, err
	}
	free := <-s.spaces
	if free < 0 {
		return math.MaxInt64, nil
	}
	return free, nil
}
