package worker

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// ring is memory that only this process can write, by its mapping: the file keeps its size, and whoever gets it can map it
// for reading alone.
type ring struct {
	file   *os.File
	memory []byte
	used   int // bytes from the beginning that may have been written
}

func newRing() (_ *ring, err error) {
	fd, err := unix.MemfdCreate("layer", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("make shared memory: %w", err)
	}
	r := &ring{file: os.NewFile(uintptr(fd), "layer")}
	err = unix.Ftruncate(fd, blockSize*slots)
	if err == nil {
		// All pages at once, which is cheaper than one by one as they are needed.
		r.memory, err = unix.Mmap(fd, 0, blockSize*slots, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	}
	if err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_FUTURE_WRITE|unix.F_SEAL_SEAL)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make shared memory: %w", err), r.close())
	}
	return r, nil
}

// block returns one block to be written.
func (r *ring) block(n int) []byte {
	r.used = max(r.used, (n+1)*blockSize)
	return r.memory[n*blockSize:][:blockSize]
}

func (r *ring) close() error {
	var err error
	if r.memory != nil {
		err = unix.Munmap(r.memory)
	}
	return errors.Join(err, r.file.Close())
}

// rings keeps memory that a layer is done with for the next one, as long as others are on their way: to make it takes longer
// than to unpack a small layer.
type rings struct {
	mu    sync.Mutex
	users int
	free  []*ring
}

// take returns a ring that holds zeroes. Each call that succeeds needs one of give or drop.
func (k *rings) take() (*ring, error) {
	k.mu.Lock()
	k.users++
	if last := len(k.free) - 1; last >= 0 {
		r := k.free[last]
		k.free = k.free[:last]
		k.mu.Unlock()
		return r, nil
	}
	k.mu.Unlock()
	r, err := newRing()
	if err != nil {
		return nil, errors.Join(err, k.leave(nil))
	}
	return r, nil
}

// give takes back a ring whose worker is gone. Of its layer nothing stays in it.
func (k *rings) give(r *ring) error {
	clear(r.memory[:r.used])
	r.used = 0
	return k.leave(r)
}

// drop is give for a ring that somebody may still have.
func (k *rings) drop(r *ring) error { return errors.Join(r.close(), k.leave(nil)) }

func (k *rings) leave(r *ring) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if r != nil {
		k.free = append(k.free, r)
	}
	if k.users--; k.users > 0 {
		return nil
	}
	var err error
	for _, r := range k.free {
		err = errors.Join(err, r.close())
	}
	k.free = nil
	return err
}
