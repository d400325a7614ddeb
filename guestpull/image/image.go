package image

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coffer-project/coffer/proto/imagepolicy"
)

// cleanupTimeout bounds what is done after a pull failed, whose own context may be at its end.
const cleanupTimeout = 10 * time.Second

// Request says which image a container wants. All of it may come from the host and is taken as a wish.
type Request struct {
	// ContainerID owns the layers until Release.
	ContainerID string
	// Reference is the full name of the image: host/repository with a tag, a digest or both.
	Reference string
	// Digest is the manifest that the host believes the reference to name; empty where it does not know. It may be the
	// digest of an index or that of the manifest for Platform.
	Digest string
	// Platform is written like linux/amd64; empty means the guest's own.
	Platform string
}

// Image is an image that was pulled.
type Image struct {
	Reference string
	// TargetDigest is what the reference named: an index, or the manifest itself.
	TargetDigest digest.Digest
	// ManifestDigest is the manifest for the platform.
	ManifestDigest digest.Digest
	// Verdict says what the image security policy has found. Without a policy it is empty.
	Verdict imagepolicy.Verdict
	Config  ocispec.Image
	// Layers are directories for overlay's lowerdir, lowest first. They live until the container is released.
	Layers []string
	Report Report
}

// Puller pulls images. It is safe for concurrent use; pulls at the same time share layers.
type Puller struct {
	registry  Registry
	verifier  Verifier
	decrypter Decrypter
	unpacker  Unpacker
	store     Store
	judge     Signatures // nil without a policy
	platform  string
	parallel  int
	tracker   *Tracker

	mu     sync.Mutex
	serial int
	leases map[string][]string // container -> owners in the store, one per pull
}

// Option changes a Puller.
type Option func(*Puller)

// WithPlatform sets the platform of requests that name none.
func WithPlatform(platform string) Option {
	return func(p *Puller) { p.platform = platform }
}

// WithParallel sets how many layers of an image are worked on at a time. The default is the number of processors.
func WithParallel(n int) Option {
	return func(p *Puller) { p.parallel = n }
}

// WithTracker lets others follow the pulls.
func WithTracker(t *Tracker) Option {
	return func(p *Puller) { p.tracker = t }
}

// WithSignatures makes an image security policy decide which images are pulled. Without it every image is.
func WithSignatures(s Signatures) Option {
	return func(p *Puller) { p.judge = s }
}

// New returns a Puller of these stages.
func New(r Registry, v Verifier, d Decrypter, u Unpacker, s Store, opts ...Option) *Puller {
	p := &Puller{
		registry: r, verifier: v, decrypter: d, unpacker: u, store: s,
		platform: "linux/" + runtime.GOARCH,
		parallel: runtime.NumCPU(),
		tracker:  NewTracker(),
		leases:   map[string][]string{},
	}
	for _, opt := range opts {
		opt(p)
	}
	p.parallel = max(p.parallel, 1)
	return p
}

// Pull gets an image and makes the container the owner of its layers. After an error nothing of it is left behind. The
// error names the stage and the cause; its class is errdefs': NotFound and Unavailable speak of the registry,
// PermissionDenied and Unauthenticated of keys, credentials and the image security policy, ResourceExhausted of the guest's memory, DataLoss and
// FailedPrecondition of content that is not what it should be, InvalidArgument and NotImplemented of the image itself.
func (p *Puller) Pull(ctx context.Context, req Request) (img *Image, retErr error) {
	if req.ContainerID == "" {
		return nil, fmt.Errorf("pull image %s: no container id: %w", req.Reference, errdefs.ErrInvalidArgument)
	}
	if req.Platform == "" {
		req.Platform = p.platform
	}
	start := time.Now()
	rec := newRecorder(req.Reference, p.tracker.begin(req.ContainerID, req.Reference))
	defer func() {
		if retErr != nil {
			rec.pull.stage(stageFailed)
			retErr = fmt.Errorf("pull image %s: %w", req.Reference, retErr)
		}
	}()

	found, err := p.resolve(ctx, req, rec)
	if err != nil {
		return nil, err
	}
	rec.pull.resolved(found)
	if err := p.verdict(ctx, req, found, rec); err != nil {
		return nil, err
	}
	rec.pull.stage(stageAttest)
	if err := p.unlock(ctx, found, rec); err != nil {
		return nil, err
	}
	owner := p.lease(req.ContainerID)
	defer func() {
		if retErr != nil {
			retErr = errors.Join(retErr, p.drop(ctx, req.ContainerID, owner))
		}
	}()
	if err := p.store.Place(owner, found.sizes()); err != nil {
		return nil, p.store.Explain(owner, err)
	}
	rec.pull.stage(stageFetch)
	dirs, err := p.layers(ctx, owner, found, rec)
	if errdefs.IsResourceExhausted(err) && p.store.Move(owner) {
		// Only now it is known how large the layers are.
		log.G(ctx).WithError(err).WithField("image", req.Reference).Info("image moves to the scratch disk")
		rec.pull.again()
		dirs, err = p.layers(ctx, owner, found, rec)
	}
	if err != nil {
		return nil, p.store.Explain(owner, err)
	}
	img = &Image{
		Reference:      req.Reference,
		TargetDigest:   found.target,
		ManifestDigest: found.digest,
		Verdict:        found.verdict,
		Config:         *found.config,
		Layers:         dirs,
		Report:         rec.report(found),
	}
	rec.pull.stage(stageDone)
	done := rec.pull.final()
	log.G(ctx).WithFields(log.Fields{
		"container": req.ContainerID, "image": req.Reference, "digest": found.digest, "layers": len(dirs), "t_pull": time.Since(start),
		"bytes": done.BytesFetched, "bytes_per_s": done.Rate, "policy": found.verdict.Scope, "signed": found.verdict.Signed(),
	}).Info("image pulled")
	return img, nil
}

// Release ends a container's ownership of all images that were pulled for it. It is safe to repeat, and for containers
// that never pulled.
func (p *Puller) Release(ctx context.Context, containerID string) error {
	p.tracker.forget(containerID)
	p.mu.Lock()
	owners := p.leases[containerID]
	delete(p.leases, containerID)
	p.mu.Unlock()
	var errs []error
	for _, owner := range owners {
		if err := p.store.Release(ctx, owner); err != nil {
			errs = append(errs, fmt.Errorf("release images of container %s: %w", containerID, err))
		}
	}
	return errors.Join(errs...)
}

// lease names a new owner for one pull: a container may pull several images, and the failure of one must not take the
// others away.
func (p *Puller) lease(containerID string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.serial++
	owner := fmt.Sprintf("%s#%d", containerID, p.serial)
	p.leases[containerID] = append(p.leases[containerID], owner)
	return owner
}

func (p *Puller) drop(ctx context.Context, containerID, owner string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	p.mu.Lock()
	var rest []string
	for _, o := range p.leases[containerID] {
		if o != owner {
			rest = append(rest, o)
		}
	}
	if len(rest) == 0 {
		delete(p.leases, containerID)
	} else {
		p.leases[containerID] = rest
	}
	p.mu.Unlock()
	return p.store.Release(ctx, owner)
}
