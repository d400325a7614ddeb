package bundle

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/proto/lazyregexp"
)

// The kubelet tells a runtime nothing of volumes but paths of the host; what kind of volume one is has to be read from
// these. Their shapes are part of the kubelet's own recovery after a restart and have not changed in years.
const (
	// emptyDirSegment is part of the path of every emptyDir volume below the kubelet's folder.
	emptyDirSegment = "/kubernetes.io~empty-dir/"
	// dataLink is the link by which the kubelet switches a volume's content all at once.
	dataLink = "..data"
)

var (
	// volumePath is a pod's volume: the plugin that made it, then its name.
	volumePath = lazyregexp.New(`^(.*/pods/[^/]+)/volumes/([^/]+~[^/]+)/([^/]+)`)
	// subPath is the mount by which the kubelet gives a container a part of a volume: the pod, then the volume's name.
	subPath = lazyregexp.New(`^(.*/pods/[^/]+)/volume-subpaths/([^/]+)/[^/]+/[0-9]+$`)
	// livePath is a volume of files that the kubelet keeps up to date.
	livePath = lazyregexp.New(`/kubernetes\.io~(configmap|secret|projected|downward-api)/[^/]+$`)
	// terminationPath is the file in which the kubelet looks for a container's last message.
	terminationPath = lazyregexp.New(`/pods/[^/]+/containers/[^/]+/[0-9a-f]{8}$`)
)

// ephemeralPlugins make volumes that live no longer than their pod; all others hold data that must not be lost.
var ephemeralPlugins = []string{
	"kubernetes.io~configmap", "kubernetes.io~secret", "kubernetes.io~projected", "kubernetes.io~downward-api",
	"kubernetes.io~empty-dir", "kubernetes.io~git-repo",
}

// emptyDir is what the host's folder of an emptyDir, or of a part of it, tells.
type emptyDir struct {
	// name is the volume's, sub the part of it that is mounted, empty for all of it.
	name, sub string
	// whole and part are the facts of the volume and of the part.
	whole, part facts
}

// facts are what the host knows of a folder.
type facts struct {
	dir  bool
	mode uint32 // permissions and set-id bits
	gid  uint32
	// size is the size of the file system in memory that is mounted there, in bytes; 0 where there is none.
	size int64
	huge bool // of huge pages
	live bool // the kubelet, or a driver that uses its code, switches the content
}

// host is what a plan asks of the machine; tests have their own.
type host interface {
	// look tells about a folder or file. errdefs.ErrNotFound: there is none.
	look(path string) (facts, error)
	// within tells which part of the folder whole is mounted at part. errdefs.ErrFailedPrecondition: none is.
	within(part, whole string) (string, error)
	// writableBelow lists the file systems that are mounted writable below a folder, by their paths from there.
	writableBelow(dir string) ([]string, error)
	// hostRoot reads a file of a folder that stands for an image's root. fs.ErrNotExist: it is none, or has no such file.
	hostRoot(dir, file string) ([]byte, error)
}

type realHost struct{}

func (realHost) look(name string) (facts, error) {
	info, err := os.Stat(name)
	if os.IsNotExist(err) {
		return facts{}, fmt.Errorf("mount source %s does not exist on this host: %w", name, errdefs.ErrNotFound)
	}
	if err != nil {
		return facts{}, fmt.Errorf("look at mount source: %w", err)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return facts{}, fmt.Errorf("owner of %s is unknown: %w", name, errdefs.ErrInternal)
	}
	f := facts{dir: info.IsDir(), mode: st.Mode & 0o7777, gid: st.Gid}
	if !f.dir {
		return f, nil
	}
	if target, err := os.Readlink(filepath.Join(name, dataLink)); err == nil && !strings.Contains(target, "/") {
		f.live = true
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(name, &fs); err != nil {
		return f, fmt.Errorf("look at file system of %s: %w", name, err)
	}
	switch fs.Type {
	case unix.HUGETLBFS_MAGIC:
		f.huge = true
	case unix.TMPFS_MAGIC:
		// The machine may keep the kubelet's whole folder on a tmpfs; that one's size says nothing of the volume.
		if at, err := mountinfo.Mounted(name); err == nil && at {
			f.size = int64(fs.Blocks) * fs.Bsize
		}
	}
	return f, nil
}

func (realHost) within(part, whole string) (string, error) {
	unclear := func(why string) (string, error) {
		return "", fmt.Errorf("cannot tell which part of volume %s is mounted at %s: %s: %w", whole, part, why, errdefs.ErrFailedPrecondition)
	}
	part, err := filepath.EvalSymlinks(part)
	if err != nil {
		return "", fmt.Errorf("resolve mount source: %w", err)
	}
	if whole, err = filepath.EvalSymlinks(whole); err != nil {
		return "", fmt.Errorf("resolve volume: %w", err)
	}
	mounts, err := mountinfo.GetMounts(nil)
	if err != nil {
		return "", fmt.Errorf("read mounts of this host: %w", err)
	}
	var at, of *mountinfo.Info // later mounts hide earlier ones
	for _, m := range mounts {
		switch {
		case m.Mountpoint == part:
			at = m
		case (m.Mountpoint == whole || m.Mountpoint == "/" || strings.HasPrefix(whole, m.Mountpoint+"/")) &&
			(of == nil || len(m.Mountpoint) >= len(of.Mountpoint)):
			of = m
		}
	}
	if at == nil || of == nil {
		return unclear("nothing is mounted there")
	}
	if at.Major != of.Major || at.Minor != of.Minor {
		return unclear("they are on different file systems")
	}
	rel, err := filepath.Rel(of.Mountpoint, whole)
	if err != nil {
		return unclear(err.Error())
	}
	top := path.Join(of.Root, rel)
	sub, below := strings.CutPrefix(at.Root, strings.TrimSuffix(top, "/")+"/")
	if at.Root == top {
		sub, below = "", true
	}
	if !below || strings.HasSuffix(sub, "//deleted") {
		return unclear("it has been removed")
	}
	return sub, nil
}

// findEmptyDir recognises an emptyDir and parts of it; found is false for all other sources.
func findEmptyDir(h host, source string) (e emptyDir, found bool, err error) {
	whole := ""
	if i := strings.Index(source, emptyDirSegment); i >= 0 {
		e.name, e.sub, _ = strings.Cut(source[i+len(emptyDirSegment):], "/")
		whole = source[:i+len(emptyDirSegment)] + e.name
	} else if parts := subPath.FindStringSubmatch(source); parts != nil {
		whole = parts[1] + "/volumes" + emptyDirSegment + parts[2]
		if _, err := h.look(whole); err != nil {
			return e, false, nil // the part of a volume of another kind
		}
		e.name = parts[2]
		if e.sub, err = h.within(source, whole); err != nil {
			return e, false, err
		}
	} else {
		return e, false, nil
	}
	if !idPattern.MatchString(e.name) || e.sub != "" && (path.Clean("/"+e.sub) != "/"+e.sub) {
		return e, false, fmt.Errorf("%s is no name of an emptyDir: %w", source, errdefs.ErrInvalidArgument)
	}
	if e.whole, err = h.look(whole); err != nil {
		return e, false, err
	}
	if e.whole.huge {
		return e, false, fmt.Errorf("emptyDir %s has the medium HugePages, which guests do not offer; use the medium Memory: %w",
			e.name, errdefs.ErrNotImplemented)
	}
	if e.sub != "" {
		e.part, err = h.look(source)
	}
	return e, true, err
}

// persistentVolume names the plugin behind a volume whose data outlives the pod; empty for all other sources.
func persistentVolume(source string) string {
	parts := volumePath.FindStringSubmatch(source)
	if parts == nil {
		sub := subPath.FindStringSubmatch(source)
		if sub == nil {
			return ""
		}
		volumes, err := filepath.Glob(sub[1] + "/volumes/*/" + sub[2])
		if err != nil || len(volumes) != 1 {
			return "" // of a hostPath, which has no folder there
		}
		if parts = volumePath.FindStringSubmatch(volumes[0]); parts == nil {
			return ""
		}
	}
	if slices.Contains(ephemeralPlugins, parts[2]) {
		return ""
	}
	return strings.Replace(parts[2], "~", "/", 1)
}
