package live

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/shim/hostfiles"
)

// dataLink is the link that the kubelet switches.
const dataLink = "..data"

// maxSwitches is how often the kubelet may switch a volume during its copy before that counts as an error.
const maxSwitches = 5

// errSwitched says that a version was replaced while it was copied.
var errSwitched = errors.New("volume was switched while it was copied")

// Guest is what a copy needs of the guest; the agent client has it.
type Guest interface {
	hostfiles.Copier
	// RemoveFiles removes files and folders. errdefs.ErrNotImplemented: the guest cannot.
	RemoveFiles(ctx context.Context, paths ...string) error
}

// Volume is one copy and what is known of it. In a guest that cannot remove, the links of vanished keys stay and lead
// nowhere, and a link that leads nowhere takes the place of each old version.
type Volume struct {
	hostfiles.Volume
	guest  Guest
	limits hostfiles.Limits

	mu      sync.Mutex
	gone    bool
	made    bool
	version string            // the folder that the copy's ..data leads to
	links   map[string]string // of keys, with their targets
	stale   []string          // names in the copy that have to go
}

// Copy makes a volume's copy in the guest. Errors are those of hostfiles' Plan and Copy.
func Copy(ctx context.Context, guest Guest, volume hostfiles.Volume, limits hostfiles.Limits) (*Volume, error) {
	v := &Volume{Volume: volume, guest: guest, limits: limits, links: map[string]string{}}
	return v, v.sync(ctx)
}

// forget ends the following; when it has returned, nothing is written to the copy any more.
func (v *Volume) forget() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.gone = true
}

// sync brings the copy to the host's version. It costs a few system calls when that is the copy's already.
func (v *Volume) sync(ctx context.Context) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	var err error
	for range maxSwitches {
		if v.gone {
			return nil
		}
		if err = v.syncOnce(ctx); !errors.Is(err, errSwitched) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("bring volume %s into the guest: %w", v.HostPath, err)
	}
	return nil
}

func (v *Volume) syncOnce(ctx context.Context) error {
	folder, err := filepath.EvalSymlinks(v.HostPath)
	if err != nil {
		return err
	}
	root, err := os.OpenRoot(folder)
	if err != nil {
		return err
	}
	defer root.Close()
	version, err := versionOf(root)
	if err != nil {
		return err
	}
	links, err := linksOf(root)
	if err != nil {
		return err
	}
	if version == "" {
		return v.copyPlain(ctx, folder)
	}
	if err := v.makeFolder(ctx, root); err != nil {
		return err
	}
	old := v.version
	if version != old {
		if err := v.copyVersion(ctx, root, version); err != nil {
			return err
		}
	}
	if old != "" && old != version {
		v.stale = append(v.stale, old)
	}
	if err := v.updateLinks(ctx, links); err != nil {
		return err
	}
	if err := v.remove(ctx, v.stale); err != nil {
		return err
	}
	v.stale = nil
	return nil
}

// versionOf reads the link; it is empty for a volume that has none.
func versionOf(root *os.Root) (string, error) {
	version, err := root.Readlink(dataLink)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	if !strings.HasPrefix(version, "..") || version == ".." || strings.Contains(version, "/") || version == dataLink {
		return "", fmt.Errorf("link %s leads to %.64q, which the kubelet does not write: %w", dataLink, version, errdefs.ErrFailedPrecondition)
	}
	return version, nil
}

// linksOf are the links of keys. The folders of versions and the links to them begin with two dots, which no key does.
func linksOf(root *os.Root) (map[string]string, error) {
	dir, err := root.Open(".")
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	entries, err := dir.ReadDir(-1)
	if err != nil {
		return nil, err
	}
	links := make(map[string]string, len(entries))
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), "..") || entry.Type() != fs.ModeSymlink {
			continue
		}
		target, err := root.Readlink(entry.Name())
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed since; the kubelet's event of that comes later
		}
		if err != nil {
			return nil, err
		}
		links[entry.Name()] = target
	}
	return links, nil
}

// copyPlain copies a volume without versions, once: without the link there is no whole new version to wait for.
func (v *Volume) copyPlain(ctx context.Context, folder string) error {
	if v.made {
		return nil
	}
	jobs, err := v.limits.Plan(folder, v.GuestPath)
	if err != nil {
		return err
	}
	if err := hostfiles.Copy(ctx, v.guest, jobs); err != nil {
		return err
	}
	v.made = true
	return nil
}

func (v *Volume) makeFolder(ctx context.Context, root *os.Root) error {
	if v.made {
		return nil
	}
	job, err := hostfiles.FolderJob(root, v.GuestPath)
	if err != nil {
		return err
	}
	if err := hostfiles.Copy(ctx, v.guest, []hostfiles.Job{job}); err != nil {
		return err
	}
	v.made = true
	return nil
}

// copyVersion copies the folder of a version and then switches to it.
func (v *Volume) copyVersion(ctx context.Context, root *os.Root, version string) error {
	target := path.Join(v.GuestPath, version)
	jobs, err := v.limits.PlanFolder(root, version, target)
	if err == nil {
		err = hostfiles.Copy(ctx, v.guest, jobs)
	}
	// The kubelet removes a version only after it has switched to the next one: what was copied is whole if the link has not
	// changed until now.
	if now, linkErr := versionOf(root); linkErr == nil && now != version {
		err = errSwitched
	}
	if err != nil {
		return errors.Join(err, v.remove(ctx, []string{version}))
	}
	if err := hostfiles.Copy(ctx, v.guest, []hostfiles.Job{linkJob(path.Join(v.GuestPath, dataLink), version)}); err != nil {
		return err
	}
	v.version = version
	return nil
}

// updateLinks makes the links of new keys and notes those that are no more.
func (v *Volume) updateLinks(ctx context.Context, links map[string]string) error {
	var jobs []hostfiles.Job
	for name, target := range links {
		if known, ok := v.links[name]; !ok || known != target {
			jobs = append(jobs, linkJob(path.Join(v.GuestPath, name), target))
		}
	}
	if err := hostfiles.Copy(ctx, v.guest, jobs); err != nil {
		return err
	}
	for name := range v.links {
		if _, ok := links[name]; !ok {
			v.stale = append(v.stale, name)
		}
	}
	v.stale = slices.DeleteFunc(v.stale, func(name string) bool { return links[name] != "" })
	v.links = links
	return nil
}

func linkJob(guestPath, target string) hostfiles.Job {
	return hostfiles.Job{GuestPath: guestPath, Mode: unix.S_IFLNK | 0o777, Content: []byte(target)}
}

// remove removes entries of the copy. Where the guest cannot, an old version at least gives its memory back: Kata's agent
// puts a link into the place of a whole folder.
func (v *Volume) remove(ctx context.Context, names []string) error {
	if len(names) == 0 {
		return nil
	}
	paths := make([]string, 0, len(names))
	for _, name := range names {
		paths = append(paths, path.Join(v.GuestPath, name))
	}
	err := v.guest.RemoveFiles(ctx, paths...)
	if !errdefs.IsNotImplemented(err) {
		return err
	}
	var jobs []hostfiles.Job
	for i, name := range names {
		if strings.HasPrefix(name, "..") {
			jobs = append(jobs, linkJob(paths[i], "..removed"))
		}
	}
	return hostfiles.Copy(ctx, v.guest, jobs)
}
