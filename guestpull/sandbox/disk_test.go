package sandbox

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/integration/require"
	agentpb "github.com/coffer-project/coffer/proto/agent"
)

// TestVolumeOnDisk: a plain folder is on the scratch disk, on which neither programs' set-uid bits nor devices mean
// anything; in the volume they do.
func TestVolumeOnDisk(t *testing.T) {
	disk := require.Tmpfs(t, unix.MS_NODEV|unix.MS_NOSUID, "size=16m")
	s := newSandboxWith(t, disk)
	must(t, s.Create(t.Context(), &agentpb.CreateSandboxRequest{SandboxId: "pod"}))
	point := filepath.Join(s.ephemeralDir(), "cache")
	volume := &agentpb.Storage{Driver: "local", Source: "local", Fstype: "local", Options: []string{"mode=2777"}, MountPoint: point,
		FsGroup: &agentpb.FSGroup{GroupId: 2000}}
	part := &agentpb.Storage{Driver: "local", Source: "local", Fstype: "local", Options: []string{"mode=0755"}, MountPoint: point + "/a/b"}
	for range 2 { // for two containers
		must(t, s.Mount(t.Context(), volume))
		must(t, s.Mount(t.Context(), part))
	}
	var st unix.Stat_t
	must(t, unix.Stat(filepath.Join(disk, "volumes/cache"), &st))
	if st.Mode&0o7777 != 0o2777 || st.Gid != 2000 {
		t.Errorf("the volume has mode %o and group %d", st.Mode, st.Gid)
	}
	if _, err := os.Stat(filepath.Join(disk, "volumes/cache/a/b")); err != nil {
		t.Error("a part of the volume:", err)
	}
	var fs unix.Statfs_t
	must(t, unix.Statfs(point, &fs))
	if fs.Flags&(unix.ST_NODEV|unix.ST_NOSUID) != 0 {
		t.Errorf("the volume is mounted with flags %#x", fs.Flags)
	}
	handle, release, err := s.OpenVolume(point, true)
	must(t, err)
	must(t, handle.Close())
	must(t, release(t.Context()))
	// One in memory stays there.
	memory := &agentpb.Storage{Driver: "ephemeral", Source: "tmpfs", Fstype: "tmpfs", Options: []string{"size=1048576"}, MountPoint: filepath.Join(s.ephemeralDir(), "memory")}
	must(t, s.Mount(t.Context(), memory))
	must(t, unix.Statfs(memory.MountPoint, &fs))
	if fs.Blocks*uint64(fs.Bsize) != 1<<20 {
		t.Errorf("the volume in memory has %d blocks of %d", fs.Blocks, fs.Bsize)
	}
	must(t, s.Destroy(context.Background()))
	if entries, err := os.ReadDir(filepath.Join(disk, "volumes")); err != nil || len(entries) != 0 {
		t.Errorf("the disk still has %v, %v", entries, err)
	}
}
