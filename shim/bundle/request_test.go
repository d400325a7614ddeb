package bundle

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protojson"

	agentpb "github.com/coffer-project/coffer/proto/agent"
	"github.com/coffer-project/coffer/proto/volume"
	"github.com/coffer-project/coffer/shim/hostfiles"
)

var update = flag.Bool("update", false, "write the golden files; look at the difference before committing it")

const testDigest = "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"

// testRootfs is the mount that Coffer's snapshotter makes.
func testRootfs(tb testing.TB, v *volume.Volume) []*types.Mount {
	tb.Helper()
	option, err := v.Option()
	if err != nil {
		tb.Fatal(err)
	}
	return []*types.Mount{{Type: "bind", Source: "/var/lib/coffer/empty", Options: []string{"ro", "rbind", option}}}
}

func guestPull(source string) *volume.Volume {
	return &volume.Volume{
		VolumeType: volume.TypeImageGuestPull,
		Source:     source,
		ImagePull: &volume.ImagePull{Metadata: map[string]string{
			volume.MetadataManifestDigest: testDigest, volume.MetadataProxyMode: "true", volume.MetadataPlatform: "linux/amd64",
		}},
	}
}

// hostFiles plans one job for every source but those of containerd's sandbox, which do not exist.
func hostFiles(source, guest string) ([]hostfiles.Job, error) {
	if strings.Contains(source, "/sandboxes/") {
		return nil, fmt.Errorf("%s: %w", source, errdefs.ErrNotFound)
	}
	return []hostfiles.Job{{HostPath: source, GuestPath: guest, Mode: unix.S_IFREG | 0o644}}, nil
}

// fakeHost is a host on which every volume is there, the pod has a fsGroup and each subPath is the folder sub.
type fakeHost struct{}

func (fakeHost) look(name string) (facts, error) {
	if strings.Contains(name, "/sandboxes/") {
		return facts{}, fmt.Errorf("%s: %w", name, errdefs.ErrNotFound)
	}
	return facts{dir: strings.Contains(name, "/volumes/") || strings.Contains(name, "~"), mode: 0o2777, gid: 2000}, nil
}

func (fakeHost) within(string, string) (string, error) { return "sub", nil }

func (fakeHost) writableBelow(string) ([]string, error) { return nil, nil }

func (fakeHost) hostRoot(string, string) ([]byte, error) { return nil, fs.ErrNotExist }

func parseFile(ctx context.Context, tb testing.TB, name string) *Bundle {
	tb.Helper()
	raw, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		tb.Fatal(err)
	}
	b, err := parse(ctx, raw)
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// TestGolden shows whole requests for what containerd's CRI plugin and ctr make.
func TestGolden(t *testing.T) {
	for name, opts := range map[string]Options{
		"cri-container": {
			ContainerID: "c0ffee", Hostname: "web-0", SharedShm: true,
			Rootfs: testRootfs(t, guestPull("registry.example.com/team/app:1.2")),
			SandboxFiles: map[string]string{
				"/etc/hosts": "/guest/hosts", "/etc/hostname": "/guest/hostname", "/etc/resolv.conf": "/guest/resolv.conf",
			},
		},
		"cri-privileged": {
			ContainerID: "c0ffee", Hostname: "web-0", SharedPID: true,
			Rootfs:       testRootfs(t, guestPull(volume.DummySource)),
			SandboxFiles: map[string]string{"/etc/hosts": "/guest/hosts", "/etc/resolv.conf": "/guest/resolv.conf"},
			Devices:      []*agentpb.Device{{Id: "vfio0", Type: "vfio-pci-gk", ContainerPath: "/dev/vfio0", Options: []string{"0000:01:00.0=01"}}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, logged := captureLog(t.Context())
			b := parseFile(ctx, t, name+".json")
			req, files, err := b.createRequest(ctx, opts, hostFiles, fakeHost{})
			if err != nil {
				t.Fatal(err)
			}
			got := golden(t, req, files, logged.AllEntries())
			file := filepath.Join("testdata", name+".golden")
			if *update {
				if err := os.WriteFile(file, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("request differs from %s; it is now\n%s", file, got)
			}
		})
	}
}

func captureLog(ctx context.Context) (context.Context, *logtest.Hook) {
	logger, hook := logtest.NewNullLogger()
	return log.WithLogger(ctx, logrus.NewEntry(logger)), hook
}

// golden writes a request, its copies and what was logged as stable text.
func golden(tb testing.TB, req *agentpb.CreateContainerRequest, files *Files, logged []*logrus.Entry) []byte {
	tb.Helper()
	raw, err := protojson.Marshal(req)
	if err != nil {
		tb.Fatal(err)
	}
	var b bytes.Buffer
	if err := json.Indent(&b, raw, "", " "); err != nil {
		tb.Fatal(err)
	}
	b.WriteString("\n")
	for _, job := range files.Jobs {
		fmt.Fprintf(&b, "copy %o %d:%d %s\n  to %s\n", job.Mode, job.UID, job.GID, job.HostPath, job.GuestPath)
	}
	for _, live := range files.Live {
		fmt.Fprintf(&b, "live %s\n  to %s\n", live.HostPath, live.GuestPath)
	}
	fmt.Fprintf(&b, "termination log %s\n", files.TerminationLog)
	for _, entry := range logged {
		fmt.Fprintf(&b, "%s: %s\n", entry.Level, entry.Message)
		for _, key := range []string{"fields", "mounts"} {
			text, _ := entry.Data[key].(string)
			for field := range strings.FieldsSeq(text) {
				fmt.Fprintf(&b, "  %s\n", field)
			}
		}
	}
	return b.Bytes()
}

// TestUserNamespace: the mappings are the guest's business, and volumes are mapped as kubelet and containerd ask for it.
func TestUserNamespace(t *testing.T) {
	ctx, logs := captureLog(t.Context())
	b := parseFile(ctx, t, "cri-privileged.json")
	uids, gids := []specs.LinuxIDMapping{{HostID: 65536, Size: 65536}}, []specs.LinuxIDMapping{{HostID: 131072, Size: 65536}}
	b.spec.Linux.UIDMappings, b.spec.Linux.GIDMappings = uids, gids
	b.spec.Linux.Namespaces = append(b.spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace, Path: "/proc/1/ns/user"})
	addMount(specs.Mount{Destination: "/data", Type: "tmpfs", UIDMappings: uids, GIDMappings: gids})(b.spec)
	opts := Options{ContainerID: "c", Rootfs: testRootfs(t, guestPull("example.com/app:1"))}
	request, _, err := b.createRequest(ctx, opts, hostFiles, fakeHost{})
	if err != nil {
		t.Fatal(err)
	}
	linux := request.GetOCI().GetLinux()
	if uid, gid := linux.GetUIDMappings(), linux.GetGIDMappings(); len(uid) != 1 || len(gid) != 1 || uid[0].GetHostID() != 65536 || gid[0].GetHostID() != 131072 {
		t.Errorf("mappings are %v and %v", uid, gid)
	}
	last := linux.GetNamespaces()[len(linux.GetNamespaces())-1]
	if last.GetType() != "user" || last.GetPath() != "" {
		t.Errorf("namespace is %v", last)
	}
	for _, entry := range logs.AllEntries() {
		if fields, _ := entry.Data["fields"].(string); strings.Contains(fields, "namespaces[user]") {
			t.Errorf("dropped: %s", fields)
		}
	}
}

func TestCreateRequestRefuses(t *testing.T) {
	pulled := testRootfs(t, guestPull("example.com/app:1"))
	block := testRootfs(t, &volume.Volume{VolumeType: volume.TypeImageRawBlock, Source: "/dev/vdb"})
	edit := func(change func(*specs.Spec)) func(*specs.Spec) { return change }
	for name, test := range map[string]struct {
		change func(*specs.Spec)
		opts   Options
		want   func(error) bool
	}{
		"bad id":              {opts: Options{ContainerID: "../c", Rootfs: pulled}, want: errdefs.IsInvalidArgument},
		"no id":               {opts: Options{Rootfs: pulled}, want: errdefs.IsInvalidArgument},
		"host snapshotter":    {opts: Options{ContainerID: "c", Rootfs: []*types.Mount{{Type: "overlay"}}}, want: errdefs.IsFailedPrecondition},
		"no root mount":       {opts: Options{ContainerID: "c"}, want: errdefs.IsInvalidArgument},
		"two volumes":         {opts: Options{ContainerID: "c", Rootfs: append(pulled[:1:1], pulled[0])}, want: errdefs.IsInvalidArgument},
		"other volume type":   {opts: Options{ContainerID: "c", Rootfs: block}, want: errdefs.IsNotImplemented},
		"nobody names image":  {opts: Options{ContainerID: "c", Rootfs: testRootfs(t, guestPull(volume.DummySource))}, change: edit(func(s *specs.Spec) { s.Annotations = nil }), want: errdefs.IsFailedPrecondition},
		"no arguments":        {change: edit(func(s *specs.Spec) { s.Process.Args = nil }), want: errdefs.IsInvalidArgument},
		"odd version":         {change: edit(func(s *specs.Spec) { s.Version = "2.0.0" }), want: errdefs.IsInvalidArgument},
		"negative memory":     {change: edit(func(s *specs.Spec) { n := int64(-7); s.Linux.Resources.Memory.Limit = &n }), want: errdefs.IsInvalidArgument},
		"relative masked":     {change: edit(func(s *specs.Spec) { s.Linux.MaskedPaths = []string{"proc"} }), want: errdefs.IsInvalidArgument},
		"unclean read-only":   {change: edit(func(s *specs.Spec) { s.Linux.ReadonlyPaths = []string{"/proc/../etc"} }), want: errdefs.IsInvalidArgument},
		"mount over root":     {change: addMount(specs.Mount{Destination: "/", Type: "tmpfs"}), want: errdefs.IsInvalidArgument},
		"relative mount":      {change: addMount(specs.Mount{Destination: "data", Type: "tmpfs"}), want: errdefs.IsInvalidArgument},
		"block file system":   {change: addMount(specs.Mount{Destination: "/data", Type: "ext4", Source: "/dev/sda1"}), want: errdefs.IsInvalidArgument},
		"overlay":             {change: addMount(specs.Mount{Destination: "/data", Type: "overlay"}), want: errdefs.IsInvalidArgument},
		"id-mapped":           {change: addMount(specs.Mount{Destination: "/data", Type: "bind", UIDMappings: []specs.LinuxIDMapping{{}}}), want: errdefs.IsNotImplemented},
		"missing source":      {change: addMount(specs.Mount{Destination: "/data", Type: "bind", Source: "/x/sandboxes/y"}), want: errdefs.IsNotFound},
		"emptyDir named dots": {change: addMount(specs.Mount{Destination: "/data", Type: "bind", Source: "/p/kubernetes.io~empty-dir/.."}), want: errdefs.IsInvalidArgument},
		"emptyDir's parent":   {change: addMount(specs.Mount{Destination: "/data", Type: "bind", Source: "/p/kubernetes.io~empty-dir/v/a/../../x"}), want: errdefs.IsInvalidArgument},
		"persistent volume":   {change: addMount(specs.Mount{Destination: "/data", Type: "bind", Source: "/k/pods/u/volumes/kubernetes.io~csi/pv/mount"}), want: errdefs.IsFailedPrecondition},
		"long hostname":       {opts: Options{ContainerID: "c", Rootfs: pulled, Hostname: strings.Repeat("h", 65)}, want: errdefs.IsInvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, _ := captureLog(t.Context())
			b := parseFile(ctx, t, "cri-privileged.json")
			if test.change != nil {
				test.change(b.spec)
			}
			if test.opts.ContainerID == "" && test.opts.Rootfs == nil {
				test.opts = Options{ContainerID: "c", Rootfs: pulled}
			}
			if _, _, err := b.createRequest(ctx, test.opts, hostFiles, fakeHost{}); !test.want(err) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func addMount(m specs.Mount) func(*specs.Spec) {
	return func(s *specs.Spec) { s.Mounts = append(s.Mounts, m) }
}

func TestImageReference(t *testing.T) {
	for name, test := range map[string]struct {
		source, metadata, annotation, crio, image string
		want                                      string
	}{
		"pod first":          {source: "example.com/a:1", metadata: "example.com/b:1", annotation: "example.com/c:1", want: "example.com/c:1"},
		"then containerd":    {source: "example.com/a:1", image: "example.com/e:1", want: "example.com/e:1"},
		"containerd's id":    {source: "example.com/a:1", image: "sha256:0000", want: "example.com/a:1"},
		"then snapshotter":   {source: "example.com/a:1", metadata: "example.com/b:1", want: "example.com/a:1"},
		"then its label":     {source: volume.DummySource, metadata: "example.com/b:1", want: "example.com/b:1"},
		"pod by image id":    {source: "example.com/a:1", annotation: "sha256:0000", want: "example.com/a:1"},
		"cri-o's annotation": {crio: "example.com/d:1", want: "example.com/d:1"},
		"image id is none":   {source: "sha256:0000", annotation: "example.com/c:1", want: "example.com/c:1"},
		"familiar name":      {source: "busybox", want: "docker.io/library/busybox:latest"},
		"familiar with repo": {source: "team/app:2", want: "docker.io/team/app:2"},
		"old docker host":    {source: "index.docker.io/busybox:1", want: "docker.io/library/busybox:1"},
		"port, no tag":       {source: "localhost:5000/app", want: "localhost:5000/app:latest"},
		"digest":             {source: "localhost/app@" + testDigest, want: "localhost/app@" + testDigest},
		"tag and digest":     {source: "example.com/app:1@" + testDigest, want: "example.com/app:1@" + testDigest},
		"spaces":             {source: "example.com/a b", want: ""},
		"control characters": {source: "example.com/a\n", want: ""},
		"folder":             {source: "example.com/", want: ""},
		"too long":           {source: "example.com/" + strings.Repeat("a", maxReference), want: ""},
		"nothing":            {want: ""},
	} {
		t.Run(name, func(t *testing.T) {
			v := guestPull(test.source)
			v.ImagePull.Metadata[volume.MetadataImageRef] = test.metadata
			got, err := imageReference(v, map[string]string{annotationImage: test.annotation, annotationImageCRIO: test.crio}, test.image)
			if got != test.want || (test.want == "") != errdefs.IsFailedPrecondition(err) {
				t.Errorf("got %q, %v; want %q", got, err, test.want)
			}
		})
	}
}

// TestForeignDigest: the digest of an image that merely has the same layers must not be pulled in this image's name.
func TestForeignDigest(t *testing.T) {
	for name, test := range map[string]struct {
		source, ref string
		known       bool
	}{
		"same name":                {source: "example.com/c:1", ref: "example.com/c:1", known: true},
		"same name in short":       {source: volume.DummySource, ref: "example.com/c:1", known: true},
		"other image, same layers": {source: "example.com/other:1", ref: "example.com/other:1"},
		"name unknown":             {source: volume.DummySource},
	} {
		t.Run(name, func(t *testing.T) {
			v := guestPull(test.source)
			v.ImagePull.Metadata[volume.MetadataImageRef] = test.ref
			v.ImagePull.Metadata[volume.MetadataManifestDigest] = testDigest
			b := &Bundle{spec: &specs.Spec{Annotations: map[string]string{annotationImage: "example.com/c:1"}}}
			storage, err := b.imageStorage(testRootfs(t, v), "", "/rootfs", nil, &dropped{})
			if err != nil {
				t.Fatal(err)
			}
			if storage.Source != "example.com/c:1" {
				t.Errorf("guest is to pull %s", storage.Source)
			}
			if got := strings.Contains(storage.DriverOptions[0], testDigest); got != test.known {
				t.Errorf("digest is in the request: %v, want %v: %s", got, test.known, storage.DriverOptions)
			}
		})
	}
}

// TestNothingOfTheHost: whatever is set in a specification, no host path of it reaches the guest.
func TestNothingOfTheHost(t *testing.T) {
	ctx, _ := captureLog(t.Context())
	for _, name := range []string{"cri-container.json", "cri-privileged.json"} {
		b := parseFile(ctx, t, name)
		files := map[string]string{"/etc/hostname": guestShared + "/hostname", "/etc/resolv.conf": guestShared + "/resolv.conf"}
		req, _, err := b.createRequest(ctx, Options{ContainerID: "c", Rootfs: testRootfs(t, guestPull("example.com/a:1")), SandboxFiles: files},
			func(source, guest string) ([]hostfiles.Job, error) {
				return []hostfiles.Job{{HostPath: source, GuestPath: guest}}, nil
			}, fakeHost{})
		if err != nil {
			t.Fatal(err)
		}
		checkGuestOnly(t, req)
		if text := req.String(); strings.Contains(text, "/var/lib/") || strings.Contains(text, "/proc/4242") {
			t.Errorf("%s: request names paths of the host: %s", name, text)
		}
	}
}

// checkGuestOnly checks what must hold for every request.
func checkGuestOnly(tb testing.TB, req *agentpb.CreateContainerRequest) {
	tb.Helper()
	spec := req.GetOCI()
	if spec.GetHooks() != nil || len(spec.GetLinux().GetDevices()) > 0 || len(spec.GetLinux().GetResources().GetDevices()) > 0 {
		tb.Error("request has hooks or devices")
	}
	for _, ns := range spec.GetLinux().GetNamespaces() {
		if ns.GetPath() != "" || ns.GetType() == string(specs.NetworkNamespace) || ns.GetType() == string(specs.UserNamespace) {
			tb.Errorf("request names namespace %v", ns)
		}
	}
	if want := guestRun + "/" + req.GetContainerId() + "/rootfs"; spec.GetRoot().GetPath() != want {
		tb.Errorf("root path is %q", spec.GetRoot().GetPath())
	}
	if len(req.GetStorages()) == 0 || req.GetStorages()[0].GetDriver() != driverGuestPull {
		tb.Error("first storage is not the image")
	}
	for _, m := range spec.GetMounts() {
		if m.GetType() == "bind" && !strings.HasPrefix(m.GetSource(), "/run/kata-containers/") {
			tb.Errorf("mount %s comes from %s", m.GetDestination(), m.GetSource())
		}
		if m.GetType() != "bind" && slices.Contains(m.GetOptions(), "rbind") {
			tb.Errorf("mount %s of type %s is a bind mount in disguise", m.GetDestination(), m.GetType())
		}
	}
	for key := range spec.GetAnnotations() {
		if !hasPrefix(key, annotationPrefixes) {
			tb.Errorf("request has annotation %s", key)
		}
	}
}

// FuzzRequest: no config.json makes the shim fall over, or lets something past the list.
func FuzzRequest(f *testing.F) {
	for _, name := range []string{"cri-container.json", "cri-privileged.json"} {
		raw, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Add([]byte(`{"ociVersion":"1.0.0","process":{"args":["a"],"cwd":"/"},"root":{},"linux":{}}`))
	rootfs := testRootfs(f, guestPull("example.com/a:1"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		ctx, _ := captureLog(t.Context())
		b, err := parse(ctx, raw)
		if err != nil {
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("%v is not an invalid argument", err)
			}
			return
		}
		req, _, err := b.createRequest(ctx, Options{ContainerID: "c", Rootfs: rootfs, SharedShm: true}, hostFiles, fakeHost{})
		if err != nil {
			return
		}
		checkGuestOnly(t, req)
	})
}
