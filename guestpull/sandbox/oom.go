package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/guestpull/container/cgroup"
)

// oomQueue holds the containers of which a process was killed for lack of memory, until the host asks.
type oomQueue struct {
	events chan string
	closed chan struct{}
	once   *sync.Once
}

// queueLength is more news than a host that listens ever leaves lying; for one that does not, further news is dropped.
const queueLength = 64

func newOOMQueue() oomQueue {
	return oomQueue{events: make(chan string, queueLength), closed: make(chan struct{}), once: &sync.Once{}}
}

func (q *oomQueue) close() { q.once.Do(func() { close(q.closed) }) }

func (q *oomQueue) push(id string) {
	select {
	case q.events <- id:
	default:
	}
}

// NextOOM blocks until a process of a container is killed for lack of memory, and returns the container. NotFound: the sandbox is
// gone, there will be no more.
func (s *Sandbox) NextOOM(ctx context.Context) (string, error) {
	select {
	case id := <-s.oom.events:
		return id, nil
	case <-s.oom.closed:
		return "", fmt.Errorf("no more out-of-memory events: the sandbox is destroyed: %w", errdefs.ErrNotFound)
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// WatchOOM reports the container's out-of-memory kills to NextOOM until stop is called. A kernel without the file reports nothing.
func (s *Sandbox) WatchOOM(containerID, cgroupPath string) (stop func(), err error) {
	w, err := cgroup.Watch(filepath.Join(s.Cgroups.Dir(cgroupPath), "memory.events"))
	if errors.Is(err, os.ErrNotExist) {
		return func() {}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("watch memory of container %s: %w", containerID, err)
	}
	seen := s.Cgroups.OOMKills(cgroupPath)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for w.Wait() {
			if now := s.Cgroups.OOMKills(cgroupPath); now > seen {
				seen = now
				s.oom.push(containerID)
			}
		}
	}()
	return func() {
		_ = w.Close()
		<-done
	}, nil
}
