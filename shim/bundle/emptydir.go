package bundle

import (
	"fmt"
	"path"
	"sync"

	agentpb "github.com/coffer-project/coffer/proto/agent"
)

// EmptyDirs are the pod's volumes in the guest's memory, or on its scratch disk. What the first container's request says of one holds for all
// that follow, because the volume is there by then. The zero value has none. It is safe for concurrent use.
type EmptyDirs struct {
	// DefaultSize is the size of one that the host sets no limit for, in bytes; 0 means half of the guest's memory.
	DefaultSize int64
	// OnDisk says that the guest has a scratch disk, for those that are not of the medium Memory.
	OnDisk bool

	mu       sync.Mutex
	storages map[string]*agentpb.Storage // by mount point
}

// settle returns what was said first about the storage's mount point.
func (e *EmptyDirs) settle(storage *agentpb.Storage) *agentpb.Storage {
	e.mu.Lock()
	defer e.mu.Unlock()
	if first, ok := e.storages[storage.GetMountPoint()]; ok {
		return first
	}
	if e.storages == nil {
		e.storages = map[string]*agentpb.Storage{}
	}
	e.storages[storage.GetMountPoint()] = storage
	return storage
}

// addEmptyDir gives the pod's containers one folder in the guest. A copy would start out equal, but each
// container would have its own. A part of it is a storage of its own, which guests make in the order of the request.
func (p *planner) addEmptyDir(out *mountPlan, e emptyDir) string {
	mountPoint := path.Join(guestEphemeral, e.name)
	whole := &agentpb.Storage{
		Driver: "ephemeral", Source: "tmpfs", Fstype: "tmpfs", Options: []string{modeOption(e.whole)}, MountPoint: mountPoint,
		FsGroup: fsGroup(e.whole),
	}
	size := e.whole.size
	if size == 0 {
		size = p.emptyDirs.DefaultSize
	}
	switch {
	case p.emptyDirs.OnDisk && e.whole.size == 0:
		whole.Driver, whole.Source, whole.Fstype = "local", "local", "local"
	case size > 0:
		whole.Options = append(whole.Options, fmt.Sprintf("size=%d", size))
	}
	p.addStorage(out, whole)
	if e.sub == "" {
		return mountPoint
	}
	part := path.Join(mountPoint, e.sub)
	p.addStorage(out, &agentpb.Storage{
		Driver: "local", Source: "local", Fstype: "local", Options: []string{modeOption(e.part)}, MountPoint: part,
		FsGroup: fsGroup(e.part),
	})
	return part
}

func (p *planner) addStorage(out *mountPlan, storage *agentpb.Storage) {
	storage = p.emptyDirs.settle(storage)
	for _, s := range out.storages {
		if s.GetMountPoint() == storage.GetMountPoint() {
			return
		}
	}
	out.storages = append(out.storages, storage)
}

func modeOption(f facts) string { return fmt.Sprintf("mode=%04o", f.mode) }

// fsGroup: the kubelet gives the folder to the pod's fsGroup.
func fsGroup(f facts) *agentpb.FSGroup {
	if f.gid == 0 {
		return nil
	}
	return &agentpb.FSGroup{GroupId: f.gid}
}
