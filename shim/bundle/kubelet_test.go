package bundle

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/integration/require"
)

func mkdir(t *testing.T, path string) string {
	t.Helper()
	if err := os.MkdirAll(path, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// mount mounts something until the test ends.
func mount(t *testing.T, source, target, kind string, flags uintptr, data string) {
	t.Helper()
	if err := unix.Mount(source, mkdir(t, target), kind, flags, data); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(target, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

// TestEmptyDirOnHost recognises emptyDirs and parts of them as the kubelet mounts them.
func TestEmptyDirOnHost(t *testing.T) {
	require.Root(t)
	top := t.TempDir()
	pod := filepath.Join(top, "pods/8f1d")
	disk := mkdir(t, pod+"/volumes/kubernetes.io~empty-dir/disk")
	memory := pod + "/volumes/kubernetes.io~empty-dir/memory"
	mount(t, "tmpfs", memory, "tmpfs", 0, "size=8m,mode=2770,gid=2000")
	claim := mkdir(t, pod+"/volumes/kubernetes.io~csi/pv/mount")
	mkdir(t, disk+"/a/b")
	mkdir(t, memory+"/part")
	subPaths := pod + "/volume-subpaths"
	mount(t, disk+"/a/b", subPaths+"/disk/main/0", "", unix.MS_BIND, "")
	mount(t, memory+"/part", subPaths+"/memory/main/1", "", unix.MS_BIND, "")
	mount(t, disk, subPaths+"/disk/main/2", "", unix.MS_BIND, "")
	mount(t, memory, subPaths+"/disk/main/3", "", unix.MS_BIND, "") // of another volume than its path says
	mkdir(t, subPaths+"/disk/main/4")                               // not mounted
	mkdir(t, disk+"/removed")
	mount(t, disk+"/removed", subPaths+"/disk/main/5", "", unix.MS_BIND, "")
	if err := os.Remove(disk + "/removed"); err != nil {
		t.Fatal(err)
	}
	mount(t, claim, subPaths+"/pv/main/6", "", unix.MS_BIND, "")
	linked := filepath.Join(t.TempDir(), "kubelet")
	if err := os.Symlink(top, linked); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		source    string
		name, sub string
		size      int64
		gid       uint32
		wantErr   error
	}{
		"disk":                 {source: disk, name: "disk"},
		"memory":               {source: memory, name: "memory", size: 8 << 20, gid: 2000},
		"part of disk":         {source: subPaths + "/disk/main/0", name: "disk", sub: "a/b"},
		"part, through a link": {source: linked + "/pods/8f1d/volume-subpaths/disk/main/0", name: "disk", sub: "a/b"},
		"part of memory":       {source: subPaths + "/memory/main/1", name: "memory", sub: "part", size: 8 << 20, gid: 2000},
		"all of it":            {source: subPaths + "/disk/main/2", name: "disk"},
		"another volume":       {source: subPaths + "/disk/main/3", wantErr: errdefs.ErrFailedPrecondition},
		"not mounted":          {source: subPaths + "/disk/main/4", wantErr: errdefs.ErrFailedPrecondition},
		"removed":              {source: subPaths + "/disk/main/5", wantErr: errdefs.ErrFailedPrecondition},
		"part of a claim":      {source: subPaths + "/pv/main/6"},
		"claim":                {source: claim},
		"missing":              {source: pod + "/volumes/kubernetes.io~empty-dir/none", wantErr: errdefs.ErrNotFound},
		"no name":              {source: pod + "/volumes/kubernetes.io~empty-dir/", wantErr: errdefs.ErrInvalidArgument},
		"other":                {source: top},
	} {
		t.Run(name, func(t *testing.T) {
			e, found, err := findEmptyDir(realHost{}, test.source)
			if !errors.Is(err, test.wantErr) || err == nil && found != (test.name != "") {
				t.Fatalf("found %t, %v, want error %v", found, err, test.wantErr)
			}
			if err == nil && (e.name != test.name || e.sub != test.sub || e.whole.size != test.size || e.whole.gid != test.gid) {
				t.Errorf("got %+v", e)
			}
		})
	}
	for source, want := range map[string]string{
		claim: "kubernetes.io/csi", subPaths + "/pv/main/6": "kubernetes.io/csi", disk: "", subPaths + "/disk/main/0": "", top: "",
		pod + "/volumes/kubernetes.io~nfs/share": "kubernetes.io/nfs", pod + "/volumes/kubernetes.io~secret/s": "", pod + "/etc-hosts": "",
	} {
		if got := persistentVolume(source); got != want {
			t.Errorf("%s is of %q, want %q", source, got, want)
		}
	}
}

// madeHost is a host with the facts that a test gives.
type madeHost struct {
	facts map[string]facts
	sub   string
}

func (h madeHost) look(path string) (facts, error) {
	f, ok := h.facts[path]
	if !ok {
		return f, errdefs.ErrNotFound
	}
	return f, nil
}

func (madeHost) writableBelow(string) ([]string, error) { return nil, nil }

func (h madeHost) hostRoot(string, string) ([]byte, error) { return nil, fs.ErrNotExist }

func (h madeHost) within(string, string) (string, error) { return h.sub, nil }

// TestEmptyDirStorages shows what a guest is asked for.
func TestEmptyDirStorages(t *testing.T) {
	const (
		whole = "/k/pods/u/volumes/kubernetes.io~empty-dir/cache"
		part  = "/k/pods/u/volume-subpaths/cache/main/0"
	)
	h := madeHost{sub: "a/b", facts: map[string]facts{
		whole: {dir: true, mode: 0o2777, gid: 2000, size: 1 << 20}, part: {dir: true, mode: 0o755},
	}}
	dirs := &EmptyDirs{DefaultSize: 5 << 20}
	plan := func(t *testing.T, h madeHost, source string) *mountPlan {
		t.Helper()
		p := &planner{containerID: "c", emptyDirs: dirs, copy: hostFiles, host: h, dropped: new(dropped)}
		out, err := p.run([]specs.Mount{{Destination: "/x", Source: source, Type: "bind", Options: []string{"rbind", "rro", "ro", "rslave"}}})
		if err != nil {
			t.Fatal(err)
		}
		if got := out.mounts[0].GetOptions(); !slices.Equal(got, []string{"rbind", "rro", "ro", "rslave"}) {
			t.Errorf("options %q", got)
		}
		return out
	}
	out := plan(t, h, part)
	if len(out.storages) != 2 || out.mounts[0].GetSource() != guestEphemeral+"/cache/a/b" {
		t.Fatalf("storages %v, mounts %v", out.storages, out.mounts)
	}
	first, second := out.storages[0], out.storages[1]
	if first.GetMountPoint() != guestEphemeral+"/cache" || !slices.Equal(first.GetOptions(), []string{"mode=2777", "size=1048576"}) ||
		first.GetFsGroup().GetGroupId() != 2000 || first.GetDriver() != "ephemeral" {
		t.Errorf("whole volume: %v", first)
	}
	if second.GetMountPoint() != guestEphemeral+"/cache/a/b" || !slices.Equal(second.GetOptions(), []string{"mode=0755"}) ||
		second.GetFsGroup() != nil || second.GetDriver() != "local" {
		t.Errorf("part: %v", second)
	}
	// A later container asks for what is there, whatever has become of the host's folder; another volume has the default size.
	h.facts[whole] = facts{dir: true, mode: 0o700}
	if again := plan(t, h, whole); !slices.Equal(again.storages[0].GetOptions(), first.GetOptions()) {
		t.Errorf("second container: %v", again.storages)
	}
	h.facts[whole+"2"] = facts{dir: true, mode: 0o777}
	if other := plan(t, h, whole+"2"); !slices.Equal(other.storages[0].GetOptions(), []string{"mode=0777", "size=5242880"}) {
		t.Errorf("default size: %v", other.storages)
	}
	// On a scratch disk is what is not of the medium Memory.
	dirs.OnDisk = true
	h.facts[whole+"4"], h.facts[whole+"5"] = facts{dir: true, mode: 0o777}, facts{dir: true, mode: 0o777, size: 1 << 20}
	for source, driver := range map[string]string{whole + "4": "local", whole + "5": "ephemeral"} {
		if got := plan(t, h, source).storages[0]; got.GetDriver() != driver {
			t.Errorf("with a scratch disk: %v", got)
		}
	}
	h.facts[whole+"3"] = facts{dir: true, huge: true}
	_, err := (&planner{emptyDirs: dirs, host: h, dropped: new(dropped)}).run([]specs.Mount{{Destination: "/x", Source: whole + "3", Type: "bind"}})
	if !errdefs.IsNotImplemented(err) {
		t.Errorf("huge pages: %v", err)
	}
}

// TestTermination finds the file of the last message by the annotation, or else by the kubelet's path.
func TestTermination(t *testing.T) {
	const kubelet = "/k/pods/u/containers/app/5c0a1b2d"
	h := madeHost{facts: map[string]facts{kubelet: {mode: 0o666}, "/other": {mode: 0o666}, "/dir": {dir: true}}}
	for name, test := range map[string]struct {
		annotation, source, at string
		want                   string
	}{
		"by its path":        {"", kubelet, "/dev/termination-log", kubelet},
		"another path":       {"", "/other", "/dev/termination-log", ""},
		"by annotation":      {"/last", "/other", "/last", "/other"},
		"annotation is else": {"/last", kubelet, "/dev/termination-log", ""},
		"a folder":           {"/last", "/dir", "/last", ""},
	} {
		t.Run(name, func(t *testing.T) {
			p := &planner{containerID: "c", terminationPath: test.annotation, copy: hostFiles, host: h, dropped: new(dropped)}
			out, err := p.run([]specs.Mount{{Destination: test.at, Source: test.source, Type: "bind", Options: []string{"rbind", "rw"}}})
			if err != nil {
				t.Fatal(err)
			}
			if out.files.TerminationLog != test.want || (test.want != "") != (out.terminationPath == test.at) {
				t.Errorf("termination log %q at %q", out.files.TerminationLog, out.terminationPath)
			}
			if warned := slices.Contains(out.writable, test.at); warned != (test.want == "") {
				t.Errorf("warned of a writable copy: %t", warned)
			}
		})
	}
}

// TestLiveFolders: a folder follows its source where the kubelet, or a driver that uses its code, switches it.
func TestLiveFolders(t *testing.T) {
	volumes := "/k/pods/u/volumes/"
	h := madeHost{facts: map[string]facts{
		volumes + "kubernetes.io~configmap/s": {dir: true}, volumes + "kubernetes.io~csi/secrets/mount": {dir: true, live: true},
		volumes + "kubernetes.io~csi/data/mount": {dir: true}, "/srv": {dir: true, live: true}, "/k/pods/u/volume-subpaths/s/main/0": {},
	}}
	for source, live := range map[string]bool{
		volumes + "kubernetes.io~configmap/s": true, volumes + "kubernetes.io~csi/secrets/mount": true,
		volumes + "kubernetes.io~csi/data/mount": false, "/srv": false, "/k/pods/u/volume-subpaths/s/main/0": false,
	} {
		p := &planner{containerID: "c", copy: hostFiles, host: h, dropped: new(dropped)}
		out, err := p.run([]specs.Mount{{Destination: "/x", Source: source, Type: "bind", Options: []string{"rbind", "ro"}}})
		if err != nil {
			t.Fatal(err)
		}
		if got := len(out.files.Live) == 1; got != live || len(out.files.GuestPaths()) != 1 {
			t.Errorf("%s follows its source: %t, want %t; copies %q", source, got, live, out.files.GuestPaths())
		}
	}
}
