package live

import (
	"context"
	"errors"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/fsnotify/fsnotify"
)

// watch is the keeper's goroutine.
type watch struct {
	keeper  *Keeper
	changed <-chan struct{}
	inotify *fsnotify.Watcher // nil where the machine gives none

	folders map[string][]*Volume
	watched map[string]string  // folder as the kubelet names it, to the one that is watched
	dirty   map[string]bool    // folders to look at
	faults  map[trouble]string // what was last logged

	due       *time.Timer // the next round for dirty folders
	scheduled bool        // due runs
	last      time.Time   // when the last round ended
}

// trouble is what does not work with a folder.
type trouble struct{ folder, what string }

const (
	unwatched = "cannot watch volume for changes, looking at it from time to time"
	outdated  = "volume in the guest is not up to date, trying again"
)

func newWatch(k *Keeper, changed <-chan struct{}) *watch {
	w := &watch{
		keeper: k, changed: changed, watched: map[string]string{}, dirty: map[string]bool{}, faults: map[trouble]string{},
		due: time.NewTimer(time.Hour),
	}
	w.due.Stop()
	var err error
	if w.inotify, err = fsnotify.NewWatcher(); err != nil {
		log.G(k.life).WithError(err).WithField("interval", k.times.blind).
			Warn("cannot watch for changes of volumes, looking at them from time to time; raise sysctl fs.inotify.max_user_instances")
	}
	return w
}

func (w *watch) run() {
	defer w.due.Stop()
	var events <-chan fsnotify.Event
	var faults <-chan error
	if w.inotify != nil {
		defer w.inotify.Close()
		events, faults = w.inotify.Events, w.inotify.Errors
	}
	if !w.update() {
		return
	}
	again := time.NewTimer(w.interval())
	defer again.Stop()
	for {
		select {
		case <-w.keeper.life.Done():
			return
		case <-w.changed:
			if !w.update() {
				return
			}
		case event := <-events:
			w.note(event.Name)
		case err := <-faults:
			// The queue was full: any volume may have been switched.
			log.G(w.keeper.life).WithError(err).Debug("events of volumes were lost, looking at all")
			w.all()
		case <-again.C:
			w.rewatch()
			w.all()
			again.Reset(w.interval())
		case <-w.due.C:
			w.round()
			again.Reset(w.interval())
		}
	}
}

// interval is the time to the next look at all volumes.
func (w *watch) interval() time.Duration {
	if w.inotify == nil || len(w.faults) > 0 {
		return w.keeper.times.blind
	}
	return w.keeper.times.recheck
}

// update takes over the keeper's volumes and reports whether there are any.
func (w *watch) update() bool {
	w.folders = w.keeper.current()
	for folder, at := range w.watched {
		if _, wanted := w.folders[folder]; !wanted {
			_ = w.inotify.Remove(at) // it may be gone, and the watch with it
			delete(w.watched, folder)
		}
	}
	for t := range w.faults {
		if _, wanted := w.folders[t.folder]; !wanted {
			delete(w.faults, t)
		}
	}
	w.rewatch()
	w.all()
	return len(w.folders) > 0
}

// rewatch watches all folders, again too: one may have been replaced since. It comes before a look at them, so that
// nothing happens unseen in between.
func (w *watch) rewatch() {
	if w.inotify == nil {
		return
	}
	for folder := range w.folders {
		at, err := filepath.EvalSymlinks(folder)
		if err == nil {
			err = w.inotify.Add(at)
		}
		if err == nil {
			w.watched[folder] = at
		}
		w.fault(trouble{folder, unwatched}, err)
	}
}

// fault logs an error once, and forgets it when it has passed.
func (w *watch) fault(t trouble, err error) {
	switch {
	case err == nil:
		delete(w.faults, t)
	case w.faults[t] != err.Error():
		w.faults[t] = err.Error()
		log.G(w.keeper.life).WithError(err).WithField("volume", t.folder).WithField("interval", w.keeper.times.blind).Warn(t.what)
	}
}

// note remembers the folder in which something has happened.
func (w *watch) note(name string) {
	for folder, at := range w.watched {
		if name == at || filepath.Dir(name) == at {
			w.dirty[folder] = true
			w.schedule()
		}
	}
}

func (w *watch) all() {
	for folder := range w.folders {
		w.dirty[folder] = true
	}
	w.schedule()
}

// schedule plans the next round: soon, but not too soon after the last one.
func (w *watch) schedule() {
	if !w.scheduled {
		w.scheduled = true
		w.due.Reset(max(w.keeper.times.settle, w.keeper.times.pace-time.Since(w.last)))
	}
}

// round brings the copies of the dirty folders up to date. What fails is tried again with the next look at all.
func (w *watch) round() {
	w.scheduled = false
	for folder := range w.dirty {
		var faults []error
		for _, v := range w.folders[folder] {
			// Where the pod ends, nobody reads the copy any more.
			if err := v.sync(w.keeper.life); err != nil && !errdefs.IsUnavailable(err) && !errors.Is(err, context.Canceled) {
				faults = append(faults, err)
			}
		}
		w.fault(trouble{folder, outdated}, errors.Join(faults...))
	}
	clear(w.dirty)
	w.last = time.Now()
}
