package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"go.etcd.io/bbolt"
)

// lockTimeout bounds the wait for a database that another process holds.
const lockTimeout = 2 * time.Second

// MetaStore is the database of both halves; *storage.MetaStore is the real one.
type MetaStore interface {
	TransactionContext(ctx context.Context, writable bool) (context.Context, storage.Transactor, error)
	WithTransaction(ctx context.Context, writable bool, fn storage.TransactionCallback) error
	Close() error
}

// Snapshotter implements snapshots.Snapshotter and snapshots.Cleaner; the package comment says how.
type Snapshotter struct {
	meta     MetaStore
	overlay  snapshots.Snapshotter
	records  records
	decide   decision
	platform string
	// images may be nil: then nothing is known of any image but what its snapshots say.
	images Images
	// release lets go of what decide needs.
	release func() error
	// namedUsers says that mounts bind folders with the names of users, which hostRoots keeps.
	namedUsers bool
	// unpackPause says that pause images are unpacked, unless rules or NodeDefault say so anyway.
	unpackPause bool
	hostRoots   hostRoots
	// empty is the directory that reference-only mounts bind which need no folder of their own. Nothing is ever in it.
	empty string

	closing sync.Once
	closed  error
}

var (
	_ snapshots.Snapshotter = (*Snapshotter)(nil)
	_ snapshots.Cleaner     = (*Snapshotter)(nil)
)

// decision gives the mode of a new snapshot. parent and below, its mode, are empty where there is none.
type decision func(ctx context.Context, labels map[string]string, parent string, below Mode) (Mode, error)

type options struct {
	decide   decision
	release  func() error
	platform string
	images   Images
	// numericUsers switches named users off.
	numericUsers bool
	unpackPause  bool
	overlay      []overlay.Opt
	meta         func(ctx context.Context, path string) (MetaStore, error)
}

// Opt changes a Snapshotter from its defaults.
type Opt func(*options)

// WithRules says which images pass through to the host; by default none does.
func WithRules(r Rules) Opt {
	return func(o *options) {
		o.decide = func(_ context.Context, labels map[string]string, _ string, below Mode) (Mode, error) {
			return r.decide(labels, below)
		}
	}
}

// WithNodeDefault makes it a snapshotter for containerd's default, which decides image by image. It replaces WithRules.
// n is closed with the snapshotter, and also when New fails.
func WithNodeDefault(n *NodeDefault) Opt {
	return func(o *options) { o.decide, o.release = n.decide, n.Close }
}

// WithPlatform sets the platform that guests are told to pull, such as linux/amd64; by default this machine's.
func WithPlatform(platform string) Opt { return func(o *options) { o.platform = platform } }

// WithNumericUsers lets mounts bind an empty folder, so that containerd accepts numeric users only. It is for shims that
// do not know what stands for names (package hostroot).
func WithNumericUsers() Opt { return func(o *options) { o.numericUsers = true } }

// WithOverlayOptions adds mount options to the overlay mounts of images that pass through.
func WithOverlayOptions(mountOptions []string) Opt {
	return func(o *options) { o.overlay = append(o.overlay, overlay.WithMountOptions(mountOptions)) }
}

// New opens the state below root, makes what is missing, rebuilds the overlay snapshots when the database was lost, and
// removes directories that no record names. Close must be called.
func New(ctx context.Context, root string, opts ...Opt) (_ *Snapshotter, retErr error) {
	o := options{platform: platforms.Format(platforms.DefaultSpec()), meta: openMetaStore, release: func() error { return nil }}
	WithRules(Rules{withoutReference: ModeReference})(&o)
	for _, opt := range opts {
		opt(&o)
	}
	defer func() {
		if retErr == nil {
			return
		}
		retErr = errors.Join(retErr, o.release())
		if o.images != nil {
			retErr = errors.Join(retErr, o.images.Close())
		}
	}()
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, fmt.Errorf("create state directory: %w", err)
	}
	s := &Snapshotter{
		records:     records{dir: filepath.Join(root, "snapshots")},
		decide:      o.decide,
		release:     o.release,
		platform:    o.platform,
		images:      o.images,
		hostRoots:   hostRoots{dir: filepath.Join(root, "hostroots")},
		namedUsers:  !o.numericUsers,
		unpackPause: o.unpackPause && o.images != nil,
		empty:       filepath.Join(root, "empty"),
	}
	if err := makeEmpty(s.empty); err != nil {
		return nil, err
	}
	var err error
	if s.meta, err = o.meta(ctx, filepath.Join(root, "metadata.db")); err != nil {
		return nil, err
	}
	defer func() {
		if retErr != nil {
			retErr = errors.Join(retErr, s.meta.Close())
		}
	}()
	if s.overlay, err = overlay.NewSnapshotter(root, append(o.overlay, overlay.WithMetaStore(s.meta), overlay.WithRemapIDs)...); err != nil {
		return nil, fmt.Errorf("set up overlay snapshots below %s: %w", root, err)
	}
	if err := s.initialize(ctx); err != nil {
		return nil, err
	}
	if err := s.Cleanup(ctx); err != nil {
		return nil, fmt.Errorf("remove directories that no snapshot names: %w", err)
	}
	if err := s.noteAll(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// openMetaStore opens the database now, so that a lock or a damage shows at start and not at the first pull.
func openMetaStore(ctx context.Context, path string) (MetaStore, error) {
	ms, err := storage.NewMetaStore(path, func(o *bbolt.Options) error {
		o.Timeout = lockTimeout
		return nil
	})
	if err != nil {
		return nil, err
	}
	_, tx, err := ms.TransactionContext(ctx, false)
	if err == nil {
		err = tx.Rollback()
	}
	if err != nil {
		return nil, fmt.Errorf("open snapshot database %s (does another coffer-snapshotter hold it? if it is damaged, move it away and start again: it is rebuilt): %w",
			path, errors.Join(err, ms.Close()))
	}
	return ms, nil
}

// makeEmpty makes the directory that stands for the root of every guest-pulled container.
func makeEmpty(path string) error {
	if err := os.Mkdir(path, 0o555); err != nil && !os.IsExist(err) {
		return fmt.Errorf("create empty root: %w", err)
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return fmt.Errorf("read empty root: %w", err)
	}
	if len(entries) > 0 {
		return fmt.Errorf("directory %s is handed to every container as its root and must be empty, but it holds %q: remove its content: %w",
			path, entries[0].Name(), errdefs.ErrFailedPrecondition)
	}
	// The umask may have taken bits away, and an older directory may have others.
	return os.Chmod(path, 0o555)
}

// Stat returns what is known of a snapshot. A layer of ours that the database lost is made again first.
func (s *Snapshotter) Stat(ctx context.Context, key string) (snapshots.Info, error) {
	if err := s.recover(ctx, key); err != nil {
		return snapshots.Info{}, err
	}
	return s.overlay.Stat(ctx, key)
}

// Update replaces labels. Our own are not the caller's to change.
func (s *Snapshotter) Update(ctx context.Context, info snapshots.Info, fieldpaths ...string) (updated snapshots.Info, err error) {
	if err := s.recover(ctx, info.Name); err != nil {
		return snapshots.Info{}, err
	}
	err = s.meta.WithTransaction(ctx, true, func(ctx context.Context) error {
		_, now, _, err := storage.GetInfo(ctx, info.Name)
		if err != nil {
			return fmt.Errorf("update snapshot %s: %w", info.Name, err)
		}
		wanted, paths := mergeLabels(now, info, fieldpaths)
		updated, err = storage.UpdateInfo(ctx, wanted, paths...)
		if err != nil {
			return fmt.Errorf("update snapshot %s: %w", info.Name, err)
		}
		return nil
	})
	return updated, err
}

// Usage returns the space that a snapshot itself takes; a reference takes none.
func (s *Snapshotter) Usage(ctx context.Context, key string) (snapshots.Usage, error) {
	info, err := s.Stat(ctx, key)
	if err != nil {
		return snapshots.Usage{}, err
	}
	if modeOf(info) == ModeReference {
		return snapshots.Usage{}, nil
	}
	return s.overlay.Usage(ctx, key)
}

// Mounts returns what Prepare or View returned, until containerd can tell which container it is for. Then, on a reference,
// it says more of the image that the container runs, and refuses a container that would run on this host. A container that
// runs in a guest gets a reference in any case: the guest pulls the image, whatever this host has unpacked of it.
func (s *Snapshotter) Mounts(ctx context.Context, key string) (mounts []mount.Mount, err error) {
	info, err := s.overlay.Stat(ctx, key)
	if err != nil {
		return nil, fmt.Errorf("mounts of snapshot %s: %w", key, err)
	}
	// Outside any transaction: it waits for containerd.
	container := s.containerOf(ctx, key)
	below := unpackedBelow(info)
	if modeOf(info) == ModeOverlay {
		if below == "" || container == nil || !container.runsIn(guestRuntimes) {
			return s.overlay.Mounts(ctx, key)
		}
	} else {
		if container != nil && container.runsIn(hostRuntimes) {
			return nil, fmt.Errorf("mounts of snapshot %s: %w", key, container.refuse())
		}
		if below, err = s.chainBelow(ctx, key); err != nil {
			return nil, err
		}
	}
	image := s.imageOf(ctx, container, below)
	err = s.meta.WithTransaction(ctx, false, func(ctx context.Context) error {
		mounts, err = s.referenceMounts(ctx, key, image)
		return err
	})
	return mounts, err
}

// Prepare makes a writable snapshot. For an image layer that the guest pulls it commits the layer instead and returns
// errdefs.ErrAlreadyExists, which tells containerd not to fetch it.
func (s *Snapshotter) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	return s.create(ctx, snapshots.KindActive, key, parent, opts)
}

// View makes a read-only snapshot.
func (s *Snapshotter) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	return s.create(ctx, snapshots.KindView, key, parent, opts)
}

func (s *Snapshotter) create(ctx context.Context, kind snapshots.Kind, key, parent string, opts []snapshots.Opt) ([]mount.Mount, error) {
	given, err := collect(opts)
	if err != nil {
		return nil, err
	}
	var below Mode
	if parent != "" {
		info, err := s.Stat(ctx, parent)
		if err != nil {
			return nil, fmt.Errorf("parent %s of snapshot %s: %w", parent, key, err)
		}
		below = modeOf(info)
	}
	mode, err := s.decide(ctx, given.Labels, parent, below)
	if err != nil {
		return nil, fmt.Errorf("prepare snapshot %s: %w", key, err)
	}
	if mode == ModeReference && below != ModeReference && s.ofPauseImage(ctx, given.Labels) {
		mode = ModeOverlay
	}
	if mode == ModeReference && given.Labels[snapshots.LabelSnapshotRef] == "" && unpacks(kind, key) {
		return nil, fmt.Errorf("prepare snapshot %s: its client wants to unpack a layer by itself, but the layers below are held as references for guests; "+
			"pull the image again by the transfer service (ctr image pull without --local): %w", key, errdefs.ErrFailedPrecondition)
	}
	given.Labels = withMode(given.Labels, mode)
	switch {
	case mode == ModeOverlay:
		return s.createOverlay(ctx, kind, key, parent, given.Labels)
	case kind == snapshots.KindActive && given.Labels[snapshots.LabelSnapshotRef] != "":
		return nil, s.commitLayer(ctx, key, parent, given.Labels)
	}
	return s.createReference(ctx, kind, key, parent, given.Labels)
}

// unpacks tells whether a client asks for a place to unpack a layer to, rather than for a container: by containerd's form
// of such keys, "extract-<unique> <chain>", behind the namespace that its metadata puts before them.
func unpacks(kind snapshots.Kind, key string) bool {
	name := key[strings.LastIndex(key, "/")+1:]
	return kind == snapshots.KindActive && strings.HasPrefix(name, snapshots.UnpackKeyPrefix+"-") && strings.Contains(name, " sha256:")
}

// Commit turns a writable snapshot into a read-only one that others can stand on.
func (s *Snapshotter) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	given, err := collect(opts)
	if err != nil {
		return err
	}
	info, err := s.overlay.Stat(ctx, key)
	if err != nil {
		return fmt.Errorf("commit snapshot %s: %w", key, err)
	}
	given.Labels = withMode(given.Labels, modeOf(info))
	set := func(to *snapshots.Info) error {
		to.Labels, to.Parent = given.Labels, given.Parent
		return nil
	}
	if modeOf(info) == ModeOverlay {
		return s.commitOverlay(ctx, name, key, set)
	}
	return s.meta.WithTransaction(ctx, true, func(ctx context.Context) error {
		if _, err := storage.CommitActive(ctx, key, name, snapshots.Usage{}, set); err != nil {
			return fmt.Errorf("commit snapshot %s: %w", key, err)
		}
		return nil
	})
}

// Remove forgets a snapshot and then removes its directory. One with children is refused with
// errdefs.ErrFailedPrecondition.
func (s *Snapshotter) Remove(ctx context.Context, key string) error {
	return s.overlay.Remove(ctx, key)
}

// Walk calls fn for every snapshot that a filter matches.
func (s *Snapshotter) Walk(ctx context.Context, fn snapshots.WalkFunc, filters ...string) error {
	return s.overlay.Walk(ctx, fn, filters...)
}

// Cleanup removes directories that no record names.
func (s *Snapshotter) Cleanup(ctx context.Context) error {
	return errors.Join(s.overlay.(snapshots.Cleaner).Cleanup(ctx), s.pruneHostRoots(ctx))
}

// Close closes the database, and what WithImages and WithNodeDefault gave. It may be called twice.
func (s *Snapshotter) Close() error {
	s.closing.Do(func() {
		s.closed = errors.Join(s.meta.Close(), s.release())
		if s.images != nil {
			s.closed = errors.Join(s.closed, s.images.Close())
		}
	})
	return s.closed
}
