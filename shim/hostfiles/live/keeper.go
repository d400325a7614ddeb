package live

import (
	"context"
	"sync"
	"time"

	"github.com/containerd/log"
)

// times say how fast copies follow.
type times struct {
	// settle is how long the keeper waits after an event for those that belong to it.
	settle time.Duration
	// pace is the least time between two rounds of copying, however often a volume is switched.
	pace time.Duration
	// recheck is the time after which all volumes are looked at again, whatever inotify says; blind holds where it says
	// nothing, and after a failure.
	recheck, blind time.Duration
}

var defaultTimes = times{settle: 100 * time.Millisecond, pace: time.Second, recheck: time.Minute, blind: 5 * time.Second}

// maxWatched bounds the volumes of a pod that are watched. The others are copied once.
const maxWatched = 256

// Keeper follows the switches of a pod's volumes. It has one goroutine and one inotify instance while there is something
// to follow, and nothing otherwise. Its methods are safe for concurrent use.
type Keeper struct {
	life  context.Context // the shim's own: updates belong to no request
	times times

	mu      sync.Mutex
	volumes map[string][]*Volume // by their containers
	changed chan struct{}        // holds a token when volumes has changed; nil while nothing runs
}

// NewKeeper makes a keeper without volumes. life ends with the shim.
func NewKeeper(life context.Context) *Keeper {
	return &Keeper{life: life, times: defaultTimes, volumes: map[string][]*Volume{}}
}

// Keep follows the volumes of a container from now on. What was switched since they were copied is noticed.
func (k *Keeper) Keep(container string, volumes []*Volume) {
	if len(volumes) == 0 {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	watched := len(volumes)
	for _, others := range k.volumes {
		watched += len(others)
	}
	if watched > maxWatched {
		log.G(k.life).WithField("container", container).WithField("limit", maxWatched).
			Warn("pod has too many volumes to watch, those of this container keep their content")
		return
	}
	k.volumes[container] = volumes
	if k.changed != nil {
		k.signal()
		return
	}
	k.changed = make(chan struct{}, 1)
	go newWatch(k, k.changed).run()
}

// Forget ends the following of a container's volumes. When it has returned, nothing is written to their copies any more.
func (k *Keeper) Forget(container string) {
	k.mu.Lock()
	volumes := k.volumes[container]
	delete(k.volumes, container)
	if len(volumes) > 0 {
		k.signal()
	}
	k.mu.Unlock()
	for _, v := range volumes {
		v.forget()
	}
}

// signal tells the goroutine that the volumes have changed. The caller holds the lock.
func (k *Keeper) signal() {
	select {
	case k.changed <- struct{}{}:
	default:
	}
}

// current returns the volumes by their folders; with none left the goroutine must end, and a later Keep starts another.
func (k *Keeper) current() map[string][]*Volume {
	k.mu.Lock()
	defer k.mu.Unlock()
	folders := map[string][]*Volume{}
	for _, volumes := range k.volumes {
		for _, v := range volumes {
			folders[v.HostPath] = append(folders[v.HostPath], v)
		}
	}
	if len(folders) == 0 {
		k.changed = nil
	}
	return folders
}
